import numpy as np
import pytest

from pancreas_mtl.data.images import to_source
from pancreas_mtl.errors import CaseError

pytest.importorskip("highdicom", reason="needs the extra dicom")
import highdicom
import pydicom

from pancreas_mtl.interop import dicom_read
from pancreas_mtl.interop.dicom_series import find_series

R, A, S = (-1.0, 0.0, 0.0), (0.0, -1.0, 0.0), (0.0, 0.0, 1.0)  # directions in LPS
L, P, I = (tuple(-x for x in axis) for axis in (R, A, S))  # noqa: E741
AXES = {
    "axial": (L, P),
    "axial, mirrored": (R, P),
    "axial, upside down": (R, A),
    "coronal": (L, I),
    "sagittal": (P, I),
    "sagittal, mirrored": (A, S),
    "oblique": ((0.8, 0.6, 0.0), (-0.36, 0.48, 0.8)),
}


def expected_hu(slices=5):
    k, row, column = np.indices((slices, 7, 9))
    return 2.0 * (100 * k + 10 * row + column) - 1000.0


def read(folder):
    warnings = []
    source = dicom_read.dicom_source(find_series(folder, None))
    return source.read(warnings.append), warnings


def test_hu_and_geometry_of_an_axial_series(write_series, tmp_path):
    volume, warnings = read(write_series(tmp_path))
    np.testing.assert_array_equal(volume.array, expected_hu())
    assert volume.array.dtype == np.float32
    assert volume.spacing_mm == pytest.approx((2.0, 0.7, 0.9))  # positions, not SliceThickness
    expected = np.array([[-0.9, 0, 0, 30], [0, -0.7, 0, 40], [0, 0, 2, 100], [0, 0, 0, 1]])
    np.testing.assert_allclose(volume.source.affine, expected, atol=1e-9)
    assert volume.source.shape == (9, 7, 5)
    assert warnings == []


@pytest.mark.parametrize("axes", AXES.values(), ids=AXES.keys())
def test_every_orientation_agrees_with_highdicom(axes, write_series, tmp_path):
    folder = write_series(tmp_path, axes=np.array(axes))
    volume, _ = read(folder)
    theirs = highdicom.get_volume_from_series([pydicom.dcmread(path) for path in folder.iterdir()])
    for index in np.ndindex(volume.source.shape):
        ras = volume.source.affine @ [*index, 1]
        lps = ras * [-1, -1, 1, 1]
        there = np.rint(np.linalg.inv(theirs.affine) @ lps)[:3].astype(int)
        assert to_source(volume.array, volume.source)[index] == theirs.array[tuple(there)]


def test_a_bright_voxel_on_the_patients_left_stays_there(write_series, tmp_path):
    """Rows run to the right and down, slices backwards: the last column lies on the right."""

    def edit(index, dataset):
        values = np.zeros((7, 9), np.uint16)
        values[:, 0] = 1000
        dataset.PixelData = values.tobytes()

    volume, _ = read(write_series(tmp_path, edit, axes=np.array((R, I))))
    assert volume.array[:, :, -1].min() == 1000.0  # W runs towards the left
    assert volume.array[:, :, :-1].max() == -1000.0


def test_positions_may_jitter_a_little(write_series, tmp_path):
    def edit(index, dataset):
        dataset.ImagePositionPatient[2] = round(dataset.ImagePositionPatient[2] + 0.1 * (index % 2))

    volume, _ = read(write_series(tmp_path, edit))
    assert volume.spacing_mm[0] == pytest.approx(2.0)


def test_each_slice_has_its_own_rescale(write_series, tmp_path):
    def edit(index, dataset):
        dataset.RescaleSlope, dataset.RescaleIntercept = index, -10.5

    volume, _ = read(write_series(tmp_path, edit))
    np.testing.assert_array_equal(volume.array[0], -10.5)
    assert volume.array[3, 2, 1] == 3 * 321 - 10.5


def test_signed_and_compressed_pixels(write_series, tmp_path):
    def edit(index, dataset):
        values = np.frombuffer(dataset.PixelData, np.uint16).astype(np.int16) - 300
        dataset.PixelRepresentation, dataset.PixelData = 1, values.tobytes()
        dataset.compress(pydicom.uid.RLELossless)

    volume, _ = read(write_series(tmp_path, edit))
    np.testing.assert_array_equal(volume.array, expected_hu() - 600)


@pytest.mark.parametrize(
    "syntax", ["JPEGLosslessSV1", "JPEGLossless", "JPEGLSLossless", "JPEG2000Lossless"]
)
def test_the_lossless_syntaxes_of_archives(syntax, write_series, tmp_path):
    gdcm = pytest.importorskip("gdcm", reason="needs the extra dicom")
    uid = getattr(pydicom.uid, syntax)
    for path in write_series(tmp_path).glob("*.dcm"):
        reader, change, writer = gdcm.ImageReader(), gdcm.ImageChangeTransferSyntax(), None
        reader.SetFileName(str(path))
        assert reader.Read()
        change.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.GetTSType(uid)))
        change.SetInput(reader.GetImage())
        assert change.Change()
        writer = gdcm.ImageWriter()
        writer.SetFileName(str(path))
        writer.SetFile(reader.GetFile())
        writer.SetImage(change.GetOutput())
        assert writer.Write()
        assert pydicom.dcmread(path).file_meta.TransferSyntaxUID == uid
    volume, _ = read(tmp_path)
    np.testing.assert_array_equal(volume.array, expected_hu())


def test_notes_become_warnings_of_the_case(write_series, tmp_path):
    write_series(tmp_path)
    (tmp_path / "notes.txt").write_text("thin slices")
    assert read(tmp_path)[1] == [f"{tmp_path}: left out 1 x file that is not DICOM"]


# Series that are refused


def every(**values):
    def edit(index, dataset):
        for keyword, value in values.items():
            setattr(dataset, keyword, value)

    return edit


def one(**values):
    def edit(index, dataset):
        if index == 2:
            every(**values)(index, dataset)

    return edit


def without(*keywords):
    def edit(index, dataset):
        for keyword in keywords:
            delattr(dataset, keyword)

    return edit


def dropped(*slices):
    return lambda index, dataset: index not in slices


def moved(vector_mm, when=lambda index: index == 2):
    def edit(index, dataset):
        if when(index):
            position = np.array(dataset.ImagePositionPatient, float) + np.array(vector_mm)
            dataset.ImagePositionPatient = position.tolist()

    return edit


def tilted(index, dataset):
    moved((0, index * 2 * np.tan(np.radians(15)), 0), lambda index: True)(index, dataset)


def short(index, dataset):
    dataset.PixelData = dataset.PixelData[:-20]


def a_video(index, dataset):
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.MPEG4HP41
    dataset.PixelData = pydicom.encaps.encapsulate([b"\xff\xd8\xff\xd9"])


TURNED = [1, 0, 0, 0, 0.8, 0.6]
REFUSED = {
    "a slice is missing": (dropped(2), r"4 mm from .* to IM.*, where 2 mm is usual: copy the mi"),
    "the second is missing": (dropped(1), "4 mm from .* where 2 mm is usual"),
    "uneven": (moved((0, 0, 0.5)), "2.5 mm from .* where 2 mm is usual"),
    "two at one place": (moved((0, 0, 2.0)), "lie at the same position: remove duplicates"),
    "one slice": (dropped(0, 1, 2, 3), "is the only slice of its series"),
    "tilt": (tilted, "the gantry was tilted by 15 degrees, .* make an upright NIfTI"),
    "sideways": (moved((0.5, 0, 0)), "lies 0.5 mm beside the line of the other slices"),
    "orientation": (one(ImageOrientationPatient=TURNED), "has ImageOrientationPatient .*, but IM"),
    "spacing": (one(PixelSpacing=[0.7, 0.8]), r"has PixelSpacing \[0.7, 0.[89]\], but IM"),
    "rows": (one(Rows=6), "has Rows [67], but IM.* has [67]: give a folder with slices of one ki"),
    "frame": (one(FrameOfReferenceUID="1.9"), "has FrameOfReferenceUID 1.*, but IM"),
    "study": (one(StudyInstanceUID="1.9"), "has StudyInstanceUID 1.*, but IM"),
    "no study": (every(StudyInstanceUID=""), "has an empty StudyInstanceUID, as careless anonym"),
    "no instance": (every(SOPInstanceUID=""), "has an empty SOPInstanceUID"),
    "no frame": (without("FrameOfReferenceUID"), "has an empty FrameOfReferenceUID"),
    "multi-frame": (every(SOPClassUID=pydicom.uid.EnhancedCTImageStorage), "is a multi-frame file"),
    "frames": (every(NumberOfFrames=3), "is a multi-frame file, which this does not read"),
    "RGB": (one(SamplesPerPixel=3), "is no grid of single numbers"),
    "no position": (without("ImagePositionPatient"), "no ImagePositionPatient of 3 numbers"),
    "position of 2": (one(ImagePositionPatient=[1, 2]), "no ImagePositionPatient of 3 numbers"),
    "no rotation": (every(ImageOrientationPatient=[2, 0, 0, 0, 1, 0]), "which is no rotation"),
    "no orientation": (every(ImageOrientationPatient=[0] * 6), "which is no rotation"),
    "no spacing": (without("PixelSpacing"), "has no PixelSpacing of 2 numbers"),
    "spacing zero": (every(PixelSpacing=[0, 0.9]), "has a spacing of 0.9 x 0 x 2 mm, outside"),
    "no rescale": (without("RescaleSlope"), "has no RescaleSlope of 1 numbers"),
    "no HU": (every(RescaleType="Z_EFF"), "holds values in Z_EFF, not HU"),
    "pixels cut off": (short, "is truncated or damaged"),
    "no pixels": (without("PixelData"), "is truncated or damaged"),
    "no decoder": (a_video, r"is stored as MPEG-4.*which nothing here decodes: .*\[dicom\]"),
}


@pytest.mark.parametrize(("edit", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_a_bad_series_is_refused_in_one_line(edit, message, write_series, tmp_path):
    write_series(tmp_path, edit)
    with pytest.raises(CaseError, match=message) as error:
        read(tmp_path)
    assert str(tmp_path) in str(error.value)
    assert "\n" not in str(error.value)
    assert "Doe" not in str(error.value)


def test_numbers_that_are_none_are_refused(write_series, tmp_path):
    path = next(write_series(tmp_path).glob("*.dcm"))
    path.write_bytes(path.read_bytes().replace(b"0.7\\0.9", b"0.7\\abc"))
    with pytest.raises(CaseError, match=rf"{path.name} has no PixelSpacing of 2 numbers"):
        read(tmp_path)


def test_a_file_cut_off_in_its_pixels_is_named(write_series, tmp_path):
    path = next(write_series(tmp_path).glob("*.dcm"))
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(CaseError, match=rf"{path.name} is truncated or damaged"):
        read(tmp_path)


# A real series


def test_a_real_series_with_overlapping_slices(real_ct):
    series = find_series(real_ct / "dicom", None)
    volume, warnings = read(real_ct / "dicom")
    assert warnings == []
    assert volume.array.shape == (20, 512, 512)
    assert volume.spacing_mm == (2.0, 0.9765625, 0.9765625)  # slices are 3 mm thick
    files = dicom_read.stack(series).files
    theirs = highdicom.get_volume_from_series([pydicom.dcmread(path) for path in files])
    order = 1 if theirs.affine[2, 0] > 0 else -1
    np.testing.assert_array_equal(volume.array, theirs.array[::order])
    assert -1024 <= volume.array.min() < -900
