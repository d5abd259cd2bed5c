"""Every way in and out, on a real CT and a real DICOM series; the network is untrained and tiny."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from commands import call
from extras import needs

from pancreas_mtl.data.images import read_image, read_mask, to_source
from pancreas_mtl.data.preprocess import prepare_image
from pancreas_mtl.inference.bundle import load_bundle, save_bundle
from pancreas_mtl.inference.exportable import ExportableWindow
from pancreas_mtl.inference.predictor import Predictor
from pancreas_mtl.models.network import MultitaskUNet, NetworkConfig
from pancreas_mtl.types import Intensity, Plan

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]
MODEL = {"head": "lesion", "stages": [0, 1], "hidden": 8, "dropout": 0.0, "detach_head": False}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A bundle of coarse voxels, so that a whole CT is a few windows."""
    plan = Plan(
        spacing_mm=(8.0, 8.0, 8.0),
        patch_size=(16, 32, 32),
        batch_size=2,
        channels=(4, 8, 8),
        kernels=((3, 3, 3), (3, 3, 3), (3, 3, 3)),
        strides=((1, 1, 1), (2, 2, 2), (2, 2, 2)),
        intensity=Intensity(mean_hu=60.0, std_hu=50.0, low_hu=-100.0, high_hu=250.0),
    )
    torch.manual_seed(2)
    network = MultitaskUNet(plan, NetworkConfig(**MODEL | {"stages": (0, 1)}))
    folder = tmp_path_factory.mktemp("model") / "bundle"
    save_bundle(folder, network.state_dict(), plan, {"model": MODEL})
    return folder


@pytest.fixture
def ct(real_ct):
    return real_ct / "example_ct.nii.gz"


@pytest.fixture
def expected(model, ct):
    """Labels in the axes of the file, and probabilities."""
    volume = read_image(ct)
    answer = Predictor.from_bundle(model, device="cpu", precision="fp32").predict(volume)
    assert set(np.unique(answer.labels)) == {0, 1, 2}
    return to_source(answer.labels, volume.source), answer.subtype_probabilities


def run(module, *arguments):
    finished = call(module, *arguments)
    assert finished.code == 0, finished.stderr


def export(model, name, folder):
    run("pancreas_mtl.export", f"model={model}", f"format={name}", f"output_dir={folder}")
    return folder


def row_of(folder):
    with (folder / "subtype_probabilities.csv").open() as file:
        (row,) = csv.DictReader(file)
    return [float(row[f"p{subtype}"]) for subtype in range(3)]


def test_a_series_is_answered_in_nifti_and_the_same_in_dicom(model, real_ct, tmp_path):
    needs("dicom")
    import highdicom
    import pydicom

    for kind in ("nifti", "dicom_seg"):
        arguments = (f"model={model}", f"input={real_ct / 'dicom'}", "preset=single")
        run("predict", *arguments, f"output_format={kind}", f"output_dir={tmp_path / kind}")
    (nifti,) = (tmp_path / "nifti").glob("*.nii.gz")
    mask = read_mask(nifti)
    pixels = to_source(mask.array, mask.source).transpose(2, 1, 0)
    assert set(np.unique(pixels)) == {0, 1, 2}
    (path,) = (tmp_path / "dicom_seg").glob("*.seg.dcm")
    slices = [pydicom.dcmread(one) for one in (real_ct / "dicom").glob("*.dcm")]
    slices.sort(key=lambda one: float(one.ImagePositionPatient[2]))
    assert mask.source.affine[2, 2] > 0, "the file's slices run to the head, as those sorted above"
    labels = highdicom.seg.segread(path).get_pixels_by_source_instance(
        [one.SOPInstanceUID for one in slices],
        combine_segments=True,
        ignore_spatial_locations=False,
        assert_missing_frames_are_empty=True,
    )
    np.testing.assert_array_equal(labels, pixels)
    (path,) = (tmp_path / "dicom_seg").glob("*.sr.dcm")
    (group,) = highdicom.sr.srread(path).content.get_volumetric_roi_measurement_groups()
    told = {one.name.value: one.value for one in group.get_measurements()}
    probabilities = row_of(tmp_path / "nifti")
    assert [told[f"P{subtype}"] for subtype in range(3)] == pytest.approx(probabilities, abs=1e-4)
    (evaluation,) = group.get_qualitative_evaluations()
    assert evaluation.value.value == f"S{int(np.argmax(probabilities))}"


def test_onnx_predicts_it_without_this_package(model, ct, expected, tmp_path):
    needs("onnx")
    folder = export(model, "onnx", tmp_path / "onnx")
    command = [sys.executable, "docs/examples/onnx_case.py", folder, ct, tmp_path / "mask.nii.gz"]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    mask = np.asanyarray(nib.load(tmp_path / "mask.nii.gz").dataobj)
    assert (mask != expected[0]).mean() < 1e-3
    np.testing.assert_allclose([float(p) for p in done.stdout.split()], expected[1], atol=1e-4)


def test_openvino_answers_as_torch(model, ct, tmp_path):
    needs("openvino")
    from pancreas_mtl.inference.engines.openvino_engine import core

    folder, bundle = export(model, "openvino", tmp_path / "openvino"), load_bundle(model)
    image = prepare_image(read_image(ct), bundle.plan.intensity, bundle.plan.spacing_mm)
    part = torch.as_tensor(image)[None, None, :16, :32, :32]
    exact = {"INFERENCE_PRECISION_HINT": "f32"}
    answer = core().compile_model(folder / "window.xml", "CPU", exact)({"image": part.numpy()})
    with torch.inference_mode():
        logits, _, _ = ExportableWindow(bundle.network)(part)
    np.testing.assert_allclose(answer["logits"], logits, atol=1e-4)


def test_monai_runs_it_with_both_outputs(model, ct, expected, tmp_path):
    needs("monai-bundle")
    from pancreas_mtl.interop.monai_bundle import run_inference

    folder = export(model, "monai_bundle", tmp_path / "monai")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "case_0000.nii.gz").symlink_to(ct)
    run_inference(folder, tmp_path / "in", tmp_path / "out")
    mask = np.asanyarray(nib.load(tmp_path / "out" / "case.nii.gz").dataobj)
    assert (mask != expected[0]).mean() < 1e-3
    np.testing.assert_allclose(row_of(tmp_path / "out"), expected[1], atol=1e-4)


def test_it_is_converted_byte_for_byte_with_its_subtype(ct, real_ct, tmp_path):
    folder = tmp_path / "quiz" / "train" / "subtype2"
    folder.mkdir(parents=True)
    (folder / "quiz_2_001_0000.nii.gz").symlink_to(ct)
    (folder / "quiz_2_001.nii.gz").symlink_to(real_ct / "pancreas.nii.gz")
    out = tmp_path / "Dataset172_PancreasQuiz"
    layouts = ("from=quiz", "to=nnunet", f"root={tmp_path / 'quiz'}")
    run("pancreas_mtl.convert", *layouts, f"output_dir={out}", "workers=1")
    assert (out / "imagesTr" / "quiz_2_001_0000.nii.gz").read_bytes() == ct.read_bytes()
    labels = nib.load(out / "labelsTr" / "quiz_2_001.nii.gz")
    reference = nib.load(real_ct / "pancreas.nii.gz")
    assert labels.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(np.asanyarray(labels.dataobj), np.rint(reference.get_fdata()))
    assert (out / "subtypes.csv").read_text().splitlines() == [
        "Names,Subtype",
        "quiz_2_001.nii.gz,2",
    ]
    assert json.loads((out / "dataset.json").read_text())["numTraining"] == 1
