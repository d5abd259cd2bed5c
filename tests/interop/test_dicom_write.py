import json
from pathlib import Path

import numpy as np
import pytest

from pancreas_mtl.data.images import read_mask, to_source
from pancreas_mtl.errors import CaseError
from pancreas_mtl.inference.pipeline import predict_cases, write_nifti
from pancreas_mtl.inference.predictor import Predictor
from pancreas_mtl.inference.writer import close_output, open_output, run_facts
from pancreas_mtl.interop.sources import find_sources
from pancreas_mtl.types import CasePrediction

pytest.importorskip("highdicom", reason="needs the extra dicom")
import highdicom
import pydicom

from pancreas_mtl.interop import dicom_read
from pancreas_mtl.interop.dicom_series import find_series

OBLIQUE = np.array([(0.8, 0.6, 0.0), (-0.36, 0.48, 0.8)])


def source_of(folder, output_format="dicom_seg", models=("d1g357",)):
    (source,) = find_sources(folder, None, output_format, models)
    return source


def blobs(shape):
    """Pancreas and lesion, in other places along every axis; the first and last slice are empty."""
    labels = np.zeros(shape, np.uint8)
    labels[1 : shape[0] - 1, 2:6, 1:5] = 1
    labels[2:4, 3:5, 4:7] = 2
    return labels


def write(folder, labels, output_dir, probabilities=(0.2, 0.7, 0.1)):
    source = source_of(folder)
    volume = source.read(pytest.fail)
    known = None if probabilities is None else np.array(probabilities, np.float32)
    source.write(output_dir, source.name, volume, CasePrediction(labels(volume), known))
    return volume, source.name


def read_seg(folder):
    return highdicom.seg.segread(next(Path(folder).glob("*.seg.dcm")))


def frames_by_instance(seg, folder):
    """The SEG's label of every pixel of every slice, in the order of the slices."""
    files = dicom_read.stack(find_series(folder, None)).files
    return seg.get_pixels_by_source_instance(
        [pydicom.dcmread(path).SOPInstanceUID for path in files],
        combine_segments=True,
        ignore_spatial_locations=False,
        assert_missing_frames_are_empty=True,
    )


@pytest.mark.parametrize("axes", [np.eye(3)[:2], OBLIQUE], ids=["axial", "oblique"])
def test_the_seg_equals_the_nifti_voxel_for_voxel(axes, write_series, tmp_path):
    folder, out = write_series(tmp_path / "in", axes=axes), tmp_path / "out"
    out.mkdir()
    volume, name = write(folder, lambda volume: blobs(volume.array.shape), out)
    write_nifti(out, name, volume, CasePrediction(blobs(volume.array.shape), None))
    nifti = read_mask(out / f"{name}.nii.gz")
    expected = to_source(nifti.array, nifti.source).transpose(2, 1, 0)
    assert set(np.unique(expected)) == {0, 1, 2}
    seg = read_seg(out)
    np.testing.assert_array_equal(frames_by_instance(seg, folder), expected)
    theirs = seg.get_volume(combine_segments=True)  # and they lie at the same place
    for index in np.argwhere(theirs.array):
        ras = theirs.affine @ [*index, 1] * [-1, -1, 1, 1]
        voxel = np.linalg.inv(nifti.source.affine) @ ras
        np.testing.assert_allclose(voxel, np.rint(voxel), atol=1e-4)
        i, j, k = np.rint(voxel[:3]).astype(int)
        assert expected[k, j, i] == theirs.array[tuple(index)]
    assert np.count_nonzero(theirs.array) == np.count_nonzero(expected)


def test_segments_are_coded_and_refer_to_the_series(write_series, tmp_path):
    write(write_series(tmp_path / "in"), lambda volume: blobs(volume.array.shape), tmp_path)
    seg = read_seg(tmp_path)
    pancreas, lesion = seg.SegmentSequence
    assert pancreas.SegmentedPropertyTypeCodeSequence[0].CodeValue == "15776009"
    assert lesion.SegmentedPropertyTypeCodeSequence[0].CodeValue == "52988006"
    assert lesion.AnatomicRegionSequence[0].CodeValue == "15776009"
    algorithm = lesion.SegmentationAlgorithmIdentificationSequence[0]
    assert algorithm.AlgorithmName == "pancreas_mtl"
    assert algorithm.AlgorithmParameters == "bundle0=d1g357"
    (referenced,) = seg.ReferencedSeriesSequence
    assert referenced.SeriesInstanceUID == "1.2.3.4"
    assert len(referenced.ReferencedInstanceSequence) == 5
    assert (seg.StudyInstanceUID, seg.FrameOfReferenceUID) == ("1.2.3", "1.2.5")
    assert seg.PatientID == "MRN-4711"


def test_the_report_states_subtype_and_probabilities(write_series, tmp_path):
    write(write_series(tmp_path / "in"), lambda volume: blobs(volume.array.shape), tmp_path)
    seg, report = read_seg(tmp_path), highdicom.sr.srread(next(tmp_path.glob("*.sr.dcm")))
    (group,) = report.content.get_volumetric_roi_measurement_groups()
    values = {m.name.value: m.value for m in group.get_measurements()}
    assert values == {"P0": 0.2, "P1": 0.7, "P2": 0.1}
    (evaluation,) = group.get_qualitative_evaluations()
    assert (evaluation.name.value, evaluation.value.value) == ("SUBTYPE", "S1")
    reference = group.referenced_segment[0].ReferencedSOPSequence[0]
    assert reference.ReferencedSOPInstanceUID == seg.SOPInstanceUID
    assert reference.ReferencedSegmentNumber == 2
    assert [site.value.meaning for site in group.finding_sites] == ["Pancreas"]
    assert report.CodingSchemeIdentificationSequence[0].CodingSchemeDesignator == "99PANCREASMTL"


def test_a_model_without_subtypes_writes_no_report(write_series, tmp_path):
    labels = lambda volume: blobs(volume.array.shape)  # noqa: E731
    write(write_series(tmp_path / "in"), labels, tmp_path, probabilities=None)
    assert not list(tmp_path.glob("*.sr.dcm"))
    assert read_seg(tmp_path).number_of_segments == 2


@pytest.mark.parametrize("label", [0, 1])
def test_an_empty_mask_or_lesion_is_written(label, write_series, tmp_path):
    folder = write_series(tmp_path / "in")
    write(folder, lambda volume: np.full(volume.array.shape, label, np.uint8), tmp_path)
    seg = read_seg(tmp_path)
    assert seg.number_of_segments == 2
    assert set(np.unique(frames_by_instance(seg, folder))) == {label}


def test_nothing_is_private_and_no_name_reaches_the_terminal(
    write_series, tmp_path, capfd, caplog, recwarn
):
    def edit(index, dataset):
        dataset.PatientName = "Doe"  # of one component, on which libraries remark
        dataset.add_new(0x00290010, "LO", "ACME")
        dataset.add_new(0x00291001, "LO", "secret")

    folder = write_series(tmp_path / "in", edit)
    recwarn.clear()
    caplog.set_level("INFO")
    write(folder, lambda v: blobs(v.array.shape), tmp_path)
    assert not [one for one in recwarn if "Doe" in str(one.message)]
    assert not [record for record in caplog.records if record.name.startswith("highdicom")]
    assert "Doe" not in "".join(capfd.readouterr())
    for path in tmp_path.glob("*.dcm"):
        assert not [e for e in pydicom.dcmread(path).iterall() if e.tag.is_private]


def test_missing_patient_elements_become_empty_ones(write_series, tmp_path):
    def edit(index, dataset):
        del dataset.PatientName, dataset.PatientID

    write(write_series(tmp_path / "in", edit), lambda v: blobs(v.array.shape), tmp_path)
    assert read_seg(tmp_path).PatientID == ""


def test_a_header_that_allows_no_seg_is_one_line(write_series, tmp_path):
    def edit(index, dataset):
        dataset.PatientSex = "X"

    folder = write_series(tmp_path / "in", edit)
    with pytest.raises(CaseError, match=r"in: its headers allow no DICOM SEG .* output_format=nif"):
        write(folder, lambda volume: blobs(volume.array.shape), tmp_path)
    assert not list(tmp_path.glob("*.dcm"))


@pytest.mark.slow
def test_the_seg_of_a_real_series_equals_its_labels_voxel_for_voxel(real_ct, tmp_path):
    """Slices overlap, file names are in no order, pixels are JPEG 2000."""
    folder = real_ct / "dicom"
    volume, name = write(folder, lambda volume: blobs(volume.array.shape), tmp_path)
    write_nifti(tmp_path, name, volume, CasePrediction(blobs(volume.array.shape), None))
    nifti = read_mask(tmp_path / f"{name}.nii.gz")
    seg = read_seg(tmp_path)
    expected = to_source(nifti.array, nifti.source).transpose(2, 1, 0)
    np.testing.assert_array_equal(frames_by_instance(seg, folder), expected)
    source = find_series(folder, None)
    assert seg.ReferencedSeriesSequence[0].SeriesInstanceUID == source.uid
    assert seg.get_volume(combine_segments=True).spacing[0] == pytest.approx(2.0)


# The whole way


def predict(bundle, folder, output_dir, output_format):
    predictor = Predictor.from_bundle(bundle, device="cpu", precision="fp32")
    sources = find_sources(folder, None, output_format, [predictor.bundles[0].digest])
    open_output(output_dir, "x", overwrite=False)
    records = predict_cases(predictor, sources, output_dir)
    assert [record.error for record in records] == [None]
    close_output(output_dir, records, run_facts(predictor, {}))
    return records[0].name


def test_both_output_formats_hold_the_same_mask(bundle, write_series, tmp_path):
    folder = write_series(tmp_path / "in", slices=8)
    name = predict(bundle, folder, tmp_path / "nifti", "nifti")
    predict(bundle, folder, tmp_path / "dicom", "dicom_seg")
    nifti = read_mask(tmp_path / "nifti" / f"{name}.nii.gz")
    frames = frames_by_instance(read_seg(tmp_path / "dicom"), folder)
    np.testing.assert_array_equal(frames, to_source(nifti.array, nifti.source).transpose(2, 1, 0))
    tables = [(tmp_path / kind / "subtype_results.csv").read_text() for kind in ("nifti", "dicom")]
    assert tables[0] == tables[1]
    assert tables[0].splitlines()[1].startswith(f"{name}.nii.gz,")
    assert sorted(path.name for path in (tmp_path / "dicom").iterdir()) == [
        f"{name}.seg.dcm",
        f"{name}.sr.dcm",
        "run.json",
        "subtype_probabilities.csv",
        "subtype_results.csv",
    ]


def test_no_identity_reaches_run_json_or_a_file_name(bundle, write_series, tmp_path):
    predict(bundle, write_series(tmp_path / "in"), tmp_path / "out", "nifti")
    text = (tmp_path / "out" / "run.json").read_text()
    assert json.loads(text)["cases"]
    names = [path.name for path in (tmp_path / "out").iterdir()]
    for secret in ("Doe", "MRN", "4711", "1.2.3.4"):
        assert secret not in text.replace(str(tmp_path), "")
        assert not [name for name in names if secret in name]
