import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from pancreas_mtl import Predictor
from pancreas_mtl.data.images import read_image, read_mask
from pancreas_mtl.errors import CaseError, UsageError
from pancreas_mtl.inference.bundle import load_bundle
from pancreas_mtl.inference.calibration import Calibration, save_calibration
from pancreas_mtl.inference.engines import TorchEngine
from pancreas_mtl.inference.pictures import write_preview
from pancreas_mtl.inference.pipeline import nifti_source, predict_cases
from pancreas_mtl.inference.predictor import PRESETS, Preset
from pancreas_mtl.inference.writer import (
    JOURNAL,
    CaseRecord,
    append,
    close_output,
    open_output,
    run_facts,
)

SPACING = (2.0, 0.7, 0.9)


@pytest.fixture
def image():
    return np.random.default_rng(0).normal(60, 50, size=(9, 21, 17)).astype(np.float32)


@pytest.fixture
def predictor(bundle):
    return Predictor.from_bundle(bundle, preset="single", device="cpu", precision="fp32")


def test_answer_has_the_images_grid(predictor, image):
    prediction = predictor(image, SPACING)
    assert prediction.labels.shape == image.shape
    assert prediction.labels.dtype == np.uint8
    assert prediction.subtype_probabilities.sum() == pytest.approx(1, abs=1e-5)
    assert prediction.mask_entropy > 0


def test_mirroring_a_mirrored_image_changes_nothing(bundle, image):
    predictor = Predictor.from_bundle(bundle, device="cpu", precision="fp32")
    a, b = predictor(image, SPACING), predictor(image[:, :, ::-1], SPACING)
    assert (a.labels == b.labels[:, :, ::-1]).mean() > 0.99
    np.testing.assert_allclose(a.subtype_probabilities, b.subtype_probabilities, atol=1e-3)


def test_an_ensemble_of_twins_is_the_single_model(bundle, predictor, image):
    twins = Predictor.from_bundle([bundle, bundle], preset="single", device="cpu", precision="fp32")
    alone, together = predictor(image, SPACING), twins(image, SPACING)
    np.testing.assert_allclose(
        alone.subtype_probabilities, together.subtype_probabilities, atol=1e-6
    )
    assert (alone.labels == together.labels).mean() > 0.98  # probabilities instead of logits


def test_an_ensemble_calibrated_on_the_same_cases_sharpens_its_mean(bundle, image, tmp_path):
    sure, unsure = (0.8, 0.1, 0.1), (0.2, 0.4, 0.4)  # of the first subtype, which is the true one
    paths = [tmp_path / "a", tmp_path / "b"]
    for path, order in zip(paths, (1, -1), strict=True):
        shutil.copytree(bundle, path)
        answers = tuple((p, 0) for p in (sure, unsure)[::order] * 20)
        save_calibration(path, Calibration(answers=answers, cases="the same"))
    settings = {"preset": "single", "device": "cpu", "precision": "fp32"}
    alone, together = (Predictor.from_bundle(m, **settings) for m in (paths[0], paths))
    assert alone.ensemble_temperature == 1
    assert together.ensemble_temperature == pytest.approx(0.25, rel=1e-3), "as sharp as may be"
    mean = alone(image, SPACING).subtype_probabilities
    np.testing.assert_allclose(
        together(image, SPACING).subtype_probabilities, mean**4 / (mean**4).sum(), atol=1e-5
    )
    assert run_facts(together, {})["ensemble_temperature"] == together.ensemble_temperature


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 40, 30), (40, 3, 3)])
def test_degenerate_shapes(predictor, shape):
    assert predictor(np.zeros(shape, np.float32), SPACING).labels.shape == shape


def test_bad_arrays(predictor, image):
    with pytest.raises(CaseError, match="three axes"):
        predictor(image[0], SPACING)
    for spacing in ((2.0, 0.7), (2.0, 0.7, 0.0), (2.0, 0.7, np.nan), (2.0, -0.7, 0.9)):
        with pytest.raises(CaseError, match=r"spacing_mm=.*needs three positive numbers"):
            predictor(image, spacing)
    with pytest.raises(CaseError, match="three axes"):
        predictor(image[:0], SPACING)
    image[0, 0, 0] = np.nan
    with pytest.raises(CaseError, match="finite"):
        predictor(image, SPACING)


def test_bf16_agrees_with_fp32(network):
    torch.manual_seed(0)
    images = torch.randn(2, 1, 8, 16, 16)
    full, half = (
        TorchEngine(network, device="cpu", precision=p)(images)[0] for p in ("fp32", "bf16")
    )
    assert full.dtype == half.dtype == torch.float32
    assert (full - half).abs().max() < 0.05 * full.abs().max()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"device": "tpu7"}, "device=tpu7"),
        ({"precision": "fp16", "device": "cpu"}, "precision=fp16"),
        ({"precision": "int8", "device": "cpu"}, "precision=int8: choose one of"),
    ],
)
def test_bad_choices(network, settings, message):
    with pytest.raises(UsageError, match=message):
        TorchEngine(network, **settings)


def test_a_network_trained_without_mirroring_sees_no_mirrored_image(bundle, image):
    config = yaml.safe_load((bundle / "config.yaml").read_text())
    (bundle / "config.yaml").write_text(yaml.safe_dump(config | {"augment": {"flip_p": 0.0}}))
    answers = [
        Predictor([load_bundle(bundle)], preset=preset, device="cpu")(image, SPACING)
        for preset in (PRESETS["accurate"], replace(PRESETS["accurate"], mirror_axes=()))
    ]
    np.testing.assert_array_equal(answers[0].labels, answers[1].labels)


def test_presets_pad_a_small_image_and_only_a_choice_without_padding_shrinks_the_window(
    bundle, image, monkeypatch
):
    sizes = []
    run = TorchEngine.__call__
    monkeypatch.setattr(
        TorchEngine, "__call__", lambda self, x: sizes.append(tuple(x.shape[2:])) or run(self, x)
    )
    for preset in (*PRESETS.values(), Preset(mirror_axes=(), pads=False)):
        predictor = Predictor([load_bundle(bundle)], preset=preset, device="cpu", precision="fp32")
        predictor(image[:2, :3, :3], SPACING)
    *padded, shrunk = sizes
    assert set(padded) == {predictor.bundles[0].plan.patch_size}
    assert np.prod(shrunk) < np.prod(padded[0])


def test_a_preset_that_is_none(bundle):
    with pytest.raises(UsageError, match="preset=best: choose one of accurate, fast, single"):
        Predictor.from_bundle(bundle, preset="best")


@pytest.fixture
def files(tmp_path, write_nifti):
    rng = np.random.default_rng(0)
    paths = [
        write_nifti(
            tmp_path / "in" / f"{name}_0000.nii.gz",
            rng.normal(60, 40, (14, 12, 9)).astype(np.float32),
        )
        for name in ("b", "a", "c")
    ]
    paths[1].write_bytes(b"not a scan")
    return paths


def test_one_bad_case_does_not_stop_the_others(predictor, files, tmp_path):
    output = tmp_path / "out"
    open_output(output, "x", overwrite=False)
    seen = []
    records = predict_cases(
        predictor,
        [nifti_source(p) for p in files],
        output,
        after_case=lambda name, volume, prediction: seen.append(name),
    )
    assert [record.name for record in records] == ["b", "a", "c"]
    assert "a_0000.nii.gz" in records[1].error
    assert seen == ["b", "c"]
    mask, image = read_mask(output / "b.nii.gz"), read_image(files[0])
    np.testing.assert_allclose(mask.source.affine, image.source.affine)
    assert set(records[0].seconds) == {"read", "prepare", "network", "finish", "write"}
    close_output(output, records, run_facts(predictor, {}))
    rows = (output / "subtype_results.csv").read_text().splitlines()
    assert rows[0] == "Names,Subtype"
    assert [row.split(",")[0] for row in rows[1:]] == ["b.nii.gz", "c.nii.gz"]
    assert not (output / JOURNAL).exists()


@pytest.mark.parametrize("name", ["subtype_results.csv", "subtype_probabilities.csv"])
def test_a_table_that_no_prediction_wrote_is_left_alone(tmp_path, name):
    (tmp_path / name).write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(UsageError, match=f"holds {name}, which no prediction wrote"):
            open_output(tmp_path, "x", overwrite=overwrite)
    assert (tmp_path / name).read_text() == "mine"


def test_the_record_of_a_training_is_left_alone(tmp_path):
    (tmp_path / "run.json").write_text('{"status": "finished"}')
    for overwrite in (False, True):
        with pytest.raises(UsageError, match=r"holds a run.json that no prediction wrote"):
            open_output(tmp_path, "x", overwrite=overwrite)
    assert (tmp_path / "run.json").read_text() == '{"status": "finished"}'


def test_a_defect_in_one_case_is_recorded(predictor, files, tmp_path, monkeypatch):
    open_output(tmp_path, "x", overwrite=True)
    monkeypatch.setattr(predictor, "finish", lambda *_: 1 / 0)
    records = predict_cases(predictor, [nifti_source(files[0])], tmp_path)
    assert "defect during finish" in records[0].error


def test_a_case_whose_preview_fails_leaves_nothing(predictor, files, tmp_path):
    """Else its mask would be taken for an answer, which no table names."""

    def fail(name, volume, prediction):
        raise CaseError("the disk is full")

    open_output(tmp_path / "out", "x", overwrite=False)
    source = nifti_source(files[0])
    (record,) = predict_cases(predictor, [source], tmp_path / "out", after_case=fail)
    assert record.error.endswith("the disk is full")
    assert [path.name for path in (tmp_path / "out").iterdir()] == [JOURNAL]


def test_the_scanners_voxels_go_before_the_network_runs(predictor, files, tmp_path, monkeypatch):
    """Three cases are under way at once, and a large one has a gigabyte of voxels."""
    held = []

    def infer(volume, images):
        held.append(volume.array.size)
        return Predictor.infer(predictor, volume, images)

    monkeypatch.setattr(predictor, "infer", infer)
    open_output(tmp_path, "x", overwrite=False)
    (record,) = predict_cases(predictor, [nifti_source(files[0])], tmp_path)
    assert (record.error, held) == (None, [0])


def test_the_files_of_a_case_equal_the_call_in_python(predictor, files, tmp_path):
    open_output(tmp_path, "x", overwrite=True)
    predict_cases(predictor, [nifti_source(files[0])], tmp_path)
    expected = predictor.predict(read_image(files[0]))
    np.testing.assert_array_equal(read_mask(tmp_path / "b.nii.gz").array, expected.labels)


def test_maps_and_previews_lie_beside_the_masks(bundle, files, tmp_path):
    predictor = Predictor.from_bundle(
        bundle,
        preset="single",
        device="cpu",
        precision="fp32",
        maps=["lesion_candidates", "attention"],
    )
    open_output(tmp_path, "x", overwrite=True)
    preview = partial(write_preview, tmp_path)
    (record,) = predict_cases(predictor, [nifti_source(files[0])], tmp_path, after_case=preview)
    assert record.error is None
    mask = read_image(tmp_path / "b.nii.gz")
    for name in ("lesion_candidates", "attention"):
        found = read_image(tmp_path / name / "b.nii.gz")
        np.testing.assert_array_equal(found.source.affine, mask.source.affine)
        assert found.array.shape == mask.array.shape
        assert found.array.max() > 0
    assert (tmp_path / "previews" / "b.png").stat().st_size > 5_000
    plain = Predictor.from_bundle(bundle, preset="single", device="cpu", precision="fp32")
    answer = plain.predict(read_image(files[0]))
    np.testing.assert_array_equal(mask.array, answer.labels)
    assert answer.maps == {}


def test_an_interrupted_prediction_goes_on(tmp_path):
    assert open_output(tmp_path, "x", overwrite=False) == []
    append(tmp_path, CaseRecord("a", "a.nii.gz", (0.2, 0.3, 0.5), 0.1))
    append(tmp_path, CaseRecord("b", "b.nii.gz", error="bad"))
    with (tmp_path / JOURNAL).open("a") as journal:
        journal.write('{"name": "c", "inp')
    assert [record.name for record in open_output(tmp_path, "x", overwrite=False)] == ["a"]
    with pytest.raises(UsageError, match="other models or settings"):
        open_output(tmp_path, "y", overwrite=False)
    assert open_output(tmp_path, "y", overwrite=True) == []


def test_overwriting_removes_what_an_earlier_run_left_of_its_cases(tmp_path):
    open_output(tmp_path, "x", overwrite=False)
    names = ("a.nii.gz", "attention/a.nii.gz", "lesion_candidates/a.nii.gz", "previews/a.png")
    for name in (*names, "mine.nii.gz"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    close_output(tmp_path, [CaseRecord("a", "a.nii.gz", (0.2, 0.3, 0.5), 0.1)], {})
    open_output(tmp_path, "x", overwrite=True)
    assert not [name for name in names if (tmp_path / name).exists()]
    assert (tmp_path / "mine.nii.gz").exists()


def test_a_finished_prediction_is_not_overwritten(predictor, tmp_path):
    open_output(tmp_path, "x", overwrite=False)
    sure = (1e-8, 0.3, float(np.float32(1 - 1e-7)))  # what six digits would round to 0 and 1
    close_output(tmp_path, [CaseRecord("a", "a.nii.gz", sure, 0.1)], {})
    with pytest.raises(UsageError, match="finished prediction"):
        open_output(tmp_path, "x", overwrite=False)
    assert (tmp_path / "subtype_results.csv").read_text() == "Names,Subtype\na.nii.gz,2\n"
    assert (tmp_path / "subtype_probabilities.csv").read_text() == (
        "Names,p0,p1,p2\na.nii.gz,1e-08,0.3,0.999999881\n"
    )


@pytest.mark.slow
def test_a_type_checker_knows_the_predictor(tmp_path, monkeypatch):
    api = pytest.importorskip("mypy.api", reason="needs the extra dev")
    monkeypatch.chdir(Path(__file__).resolve().parents[2])
    code = "from pancreas_mtl import Predictor\nreveal_type(Predictor.from_bundle)\n"
    (tmp_path / "user.py").write_text(code)
    told, _, _ = api.run([str(tmp_path / "user.py")])
    assert "-> pancreas_mtl.inference.predictor.Predictor" in told
