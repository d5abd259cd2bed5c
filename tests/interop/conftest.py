"""A function that writes small CT series in DICOM."""

import numpy as np
import pytest

ROWS, COLUMNS, SLICES = 7, 9, 5
ROWS_MM, COLUMNS_MM, STEP_MM = 0.7, 0.9, 2.0
ORIGIN_MM = np.array([-30.0, -40.0, 100.0])
AXIAL = np.eye(3)[:2]
SLOPE, INTERCEPT = 2.0, -1000.0


def stored_values(slices=SLICES):
    """Voxels (slices, rows, columns) that tell their place."""
    k, row, column = np.indices((slices, ROWS, COLUMNS))
    return (100 * k + 10 * row + column).astype(np.uint16)


def header(index, *, axes, uid, study, frame):
    """One slice; its thickness is no spacing."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID = CTImageStorage
    dataset.SOPInstanceUID = generate_uid(entropy_srcs=[uid, str(index)])
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.SeriesInstanceUID, dataset.StudyInstanceUID = uid, study
    dataset.FrameOfReferenceUID = frame
    dataset.Modality, dataset.ImageType = "CT", ["ORIGINAL", "PRIMARY", "AXIAL"]
    dataset.SeriesDescription = "portal venous"
    dataset.PatientName, dataset.PatientID = "Doe^Jane", "MRN-4711"
    dataset.ImageOrientationPatient = axes.ravel().tolist()
    normal = np.cross(*axes)
    dataset.ImagePositionPatient = (ORIGIN_MM + index * STEP_MM * normal).tolist()
    dataset.PixelSpacing, dataset.SliceThickness = [ROWS_MM, COLUMNS_MM], 5.0
    dataset.Rows, dataset.Columns, dataset.SamplesPerPixel = ROWS, COLUMNS, 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.BitsAllocated = dataset.BitsStored = 16
    dataset.HighBit, dataset.PixelRepresentation = 15, 0
    dataset.RescaleSlope, dataset.RescaleIntercept = SLOPE, INTERCEPT
    return dataset


@pytest.fixture
def write_series():
    """A function that writes a series of SLICES slices, its files in no order of position.

    `edit(index, dataset)` changes a slice before it is written, or drops it by returning False.
    """
    pytest.importorskip("pydicom", reason="the extra dicom is not installed")

    def write(
        folder, edit=lambda index, dataset: None, *, axes=AXIAL, uid="1.2.3.4", slices=SLICES
    ):
        folder.mkdir(parents=True, exist_ok=True)
        for index, values in enumerate(stored_values(slices)):
            dataset = header(index, axes=axes, uid=uid, study="1.2.3", frame="1.2.5")
            dataset.PixelData = values.tobytes()
            if edit(index, dataset) is not False:
                path = folder / f"IM{(3 * index + 1) % slices}{index}{uid[-1]}.dcm"
                dataset.save_as(path, enforce_file_format=True)
        return folder

    return write
