"""From phantoms to a report, by the very commands of the README; and one real CT."""

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from evaluation import browser
from wandb_file import read_runs

from pancreas_mtl.data.images import read_image, read_mask
from pancreas_mtl.data.phantom import write_dataset
from pancreas_mtl.metrics.segmentation import dsc

ROOT = Path(__file__).resolve().parent.parent
STEPS = ("step", "epoch")
pytestmark = pytest.mark.slow
TINY = [
    "plan=small",
    "plan.base_channels=8",
    "plan.spacing_mm=[6,4,4]",
    "plan.patch_size=[16,32,32]",
    "trainer=cpu",
    "trainer.max_epochs=2",
    "sampling.steps_per_epoch=3",
    "sampling.workers=0",
    "workers=1",
]


def run(*arguments, code=0):
    result = subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
        env=os.environ | {"WANDB_MODE": "offline"},
    )
    assert result.returncode == code, result.stderr[-3000:]
    return result


def train(quiz, output_dir, *more, code=0):
    return run(
        "train.py",
        "data=quiz",
        f"data.root={quiz}",
        f"output_dir={output_dir}",
        f"paths.outputs={output_dir.parent / 'outputs'}",
        *TINY,
        *more,
        code=code,
    )


@pytest.fixture(scope="module")
def trained(tiny_quiz, tmp_path_factory):
    output_dir = tmp_path_factory.mktemp("e2e") / "run"
    train(tiny_quiz, output_dir)
    return output_dir


def test_where_no_case_has_a_subtype_none_is_answered(tiny_quiz, tmp_path):
    root = tmp_path / "Task07_Pancreas"
    for folder in ("imagesTr", "labelsTr"):
        (root / folder).mkdir(parents=True)
    names = []
    for image in sorted((tiny_quiz / "train").rglob("*_0000.nii.gz")):
        names.append(image.name.removesuffix("_0000.nii.gz") + ".nii.gz")
        shutil.copy(image, root / "imagesTr" / names[-1])
        shutil.copy(image.with_name(names[-1]), root / "labelsTr" / names[-1])
    pairs = [{"image": f"./imagesTr/{n}", "label": f"./labelsTr/{n}"} for n in names]
    labels = {"0": "background", "1": "pancreas", "2": "cancer"}
    description = {"modality": {"0": "CT"}, "labels": labels, "training": pairs, "test": []}
    (root / "dataset.json").write_text(json.dumps(description))
    output_dir = tmp_path / "run"
    ended = train(root, output_dir, "data=msd", "trainer.max_epochs=1", "pictures.every=1")
    assert "no case to train on has a subtype" in ended.stdout + ended.stderr
    rows = list(csv.DictReader((output_dir / "validation" / "subtype_results.csv").open()))
    assert {row["Subtype"] for row in rows} == {""}
    metrics = json.loads((output_dir / "metrics.json").read_text())
    assert metrics["subtype"]["macro_f1"]["mean"] is None
    curve = next(csv.DictReader((output_dir / "metrics.csv").open()))
    assert "val/macro_f1" not in curve


def test_a_run_leaves_what_the_readme_names(trained):
    for name in (
        "bundle/model.safetensors",
        "bundle/plan.json",
        "bundle/config.yaml",
        "checkpoints/last.ckpt",
        "checkpoints/best.ckpt",
        "splits.json",
        "metrics.csv",
        "metrics.json",
        "report.html",
        "config.yaml",
        "audit.json",
        "train.log",
    ):
        assert (trained / name).stat().st_size > 0, name
    with (trained / "metrics.csv").open() as file:
        assert [row["epoch"] for row in csv.DictReader(file)] == ["0", "1"]
    metrics = json.loads((trained / "metrics.json").read_text())
    fold = json.loads((trained / "splits.json").read_text())["folds"][0]
    assert sorted(case["name"] for case in metrics["cases"]) == sorted(fold["validation"])


def test_the_card_holds_data_and_metrics_of_the_run(trained):
    card = (trained / "bundle" / "README.md").read_text()
    metrics = json.loads((trained / "metrics.json").read_text())
    assert f"On the {metrics['n_cases']} validation cases" in card
    for name, region in (("Whole-pancreas DSC", "whole_pancreas"), ("Lesion DSC", "lesion")):
        found = metrics[region]["dsc"]
        low, high = found["ci95"]
        assert f"| {name} | {found['mean']:.3f} | {low:.3f} to {high:.3f} |" in card
    assert "| train | 8 | 8 |" in card


def test_predict_evaluate_report(trained, tiny_quiz, tmp_path):
    predictions, evaluation = tmp_path / "predictions", tmp_path / "evaluation"
    run(
        "predict.py",
        f"model={trained / 'bundle'}",
        f"input={tiny_quiz / 'test'}",
        f"output_dir={predictions}",
        "preset=single",
        "preview=true",
        "lesion_candidates=true",
        "attention=true",
    )
    rows = (predictions / "subtype_results.csv").read_text().splitlines()
    assert rows[0] == "Names,Subtype"
    assert len(rows) == 1 + 3
    for row in rows[1:]:
        name, subtype = row.split(",")
        assert name.endswith(".nii.gz")
        assert subtype in "012"
        image = nib.load(tiny_quiz / "test" / name.replace(".nii.gz", "_0000.nii.gz"))
        mask = nib.load(predictions / name)
        assert mask.shape == image.shape
        assert mask.get_data_dtype() == np.uint8
        np.testing.assert_array_equal(mask.affine, image.affine)
        for folder in ("lesion_candidates", "attention"):
            assert nib.load(predictions / folder / name).shape == image.shape
        assert (predictions / "previews" / name.replace(".nii.gz", ".png")).exists()
    record = json.loads((predictions / "run.json").read_text())
    assert len(record["cases"]) == 3
    assert record["failures"] == []
    run(
        "-m",
        "pancreas_mtl.evaluate",
        f"predictions={predictions}",
        f"references={tiny_quiz / 'references'}",
        f"output_dir={evaluation}",
    )
    metrics = json.loads((evaluation / "metrics.json").read_text())
    assert metrics["n_cases"] == 3
    assert [target["name"] for target in metrics["targets"]]
    assert 0 <= metrics["lesion_detection"]["froc"]["mean_sensitivity"] <= 1
    run("-m", "pancreas_mtl.report", f"runs=[{trained},{evaluation}]", f"output_dir={tmp_path}")
    page = (tmp_path / "report.html").read_text()
    assert page.lstrip().lower().startswith("<!doctype html>")
    assert page.count('id="attention-case-') == 2 + 3  # of the validation and the test cases
    assert 'id="chart-froc"' in page
    look_at(tmp_path / "report.html")


def look_at(report):
    """Open a case of the report in a browser, where there is one."""
    if not (browser.CHROMIUM and browser.DRIVER):
        return
    with browser.browser() as driver:
        driver.get(report.as_uri())
        browser.open_case(driver)
        assert driver.execute_script("return viewer.dialog.dataset.state") == "ready"
        pixels = browser.canvas_pixels(driver)
        assert pixels["grey"] > 0.005 * pixels["n"]
        assert pixels["coloured"] > 0
        assert not browser.console_errors(driver)


def test_an_ensemble_predicts(trained, tiny_quiz, tmp_path):
    bundle = trained / "bundle"
    run(
        "predict.py",
        f"model=[{bundle},{bundle}]",
        f"input={tiny_quiz / 'test'}",
        f"output_dir={tmp_path / 'p'}",
        "preset=single",
    )
    assert len(json.loads((tmp_path / "p" / "run.json").read_text())["bundles"]) == 2


def test_one_bad_case_among_many_gives_exit_code_1(trained, tiny_quiz, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    good = sorted((tiny_quiz / "test").glob("*.nii.gz"))[0]
    (folder / good.name).write_bytes(good.read_bytes())
    (folder / "bad_0000.nii.gz").write_bytes(good.read_bytes()[:2000])
    result = run(
        "predict.py",
        f"model={trained / 'bundle'}",
        f"input={folder}",
        f"output_dir={tmp_path / 'p'}",
        "preset=single",
        code=1,
    )
    assert "bad_0000.nii.gz" in result.stderr.strip().splitlines()[-1]
    record = json.loads((tmp_path / "p" / "run.json").read_text())
    assert [failure["name"] for failure in record["failures"]] == ["bad"]
    assert (tmp_path / "p" / good.name.replace("_0000", "")).exists()
    assert not (tmp_path / "p" / "bad.nii.gz").exists()


def test_a_finished_run_is_not_overwritten(trained, tiny_quiz):
    before = (trained / "metrics.json").read_bytes()
    result = train(tiny_quiz, trained, code=2)
    assert "holds a run" in result.stderr.strip().splitlines()[-1]
    assert (trained / "metrics.json").read_bytes() == before


@pytest.mark.parametrize("experiment", ["conservative", "aggressive", "seg_focused"])
def test_every_variant_trains(experiment, tiny_quiz, tmp_path):
    train(tiny_quiz, tmp_path / "run", f"experiment={experiment}", "trainer.max_epochs=1")
    assert (tmp_path / "run" / "bundle" / "model.safetensors").exists()


def test_resuming_goes_on_where_it_stopped(tiny_quiz, tmp_path):
    train(tiny_quiz, tmp_path / "run", "trainer.max_epochs=1")
    train(tiny_quiz, tmp_path / "run", "trainer.max_epochs=2", "resume=true")
    with (tmp_path / "run" / "metrics.csv").open() as file:
        assert [row["epoch"] for row in csv.DictReader(file)] == ["0", "1"]


@pytest.fixture(scope="module")
def watched(tiny_quiz, tmp_path_factory):
    """A run that both wandb and TensorBoard watch, with pictures in every epoch."""
    pytest.importorskip("tensorboard", reason="needs the extra tensorboard")
    output_dir = tmp_path_factory.mktemp("watched") / "run"
    both = ["logger=wandb", "logger.wandb.mode=offline", "logger.tensorboard=true"]
    often = ["trainer.log_every_n_steps=1", "pictures.every=1", "pictures.cases=1"]
    result = train(tiny_quiz, output_dir, *both, *often)
    assert "epoch 2 of 2: score " in result.stdout  # no terminal, so a log line
    assert "training on cpu in " in result.stdout
    assert "whole-pancreas DSC" in result.stdout  # the table at the end
    assert "litlogger" not in result.stdout + result.stderr  # no advertisement
    assert "LeafSpec" not in result.stderr  # nor what concerns Lightning alone
    return output_dir


CURVES = {
    *(f"train/{part}_{when}" for part in ("loss", "segmentation", "subtype") for when in STEPS),
    *("train/gradient_norm", "train/skipped_steps", "lr/encoder", "lr/head"),
    *(f"val/{region}_dsc" for region in ("whole_pancreas", "pancreas", "lesion")),
    *(f"val/f1_subtype{subtype}" for subtype in range(3)),
    *("val/score", "val/macro_f1", "val/ece", "val/brier", "val/balanced_probability"),
}
RESULTS = {
    *("final/whole_pancreas_dsc", "final/lesion_dsc", "final/macro_f1", "final/ece"),
    *("target/whole_pancreas_dsc", "target/lesion_dsc_met", "target/macro_f1_met"),
}


def test_wandb_gets_what_the_dashboards_name(watched):
    (run,) = read_runs(watched / "wandb")
    assert set(run.summary) >= CURVES | RESULTS
    assert len(run.curve("val/score")) == 2
    metrics = json.loads((watched / "metrics.json").read_text())
    assert run.summary["final/lesion_dsc"] == pytest.approx(metrics["lesion"]["dsc"]["mean"])
    assert run.config["plan"]["base_channels"] == 8
    assert run.exit_code == 0
    case = metrics["cases"][0]["name"]
    pictures = {name.removesuffix("/path") for row in run.history for name in row}
    assert {"chart/confusion_matrix", "chart/reliability", "final/reliability"} <= pictures
    assert f"overlay/{case}" in pictures
    (bundle,) = [artifact for artifact in run.artifacts if artifact.type == "model"]
    files = {entry.path for entry in bundle.manifest.contents}
    assert {"model.safetensors", "plan.json", "config.yaml"} <= files
    (table,) = (watched / "wandb").rglob("cases*.table.json")
    rows = json.loads(table.read_text())
    assert [row[0] for row in rows["data"]] == [one["name"] for one in metrics["cases"]]
    assert all(rows["columns"][-1] == "picture" and row[-1] for row in rows["data"])


def test_tensorboard_gets_the_same(watched):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(watched / "tensorboard"), size_guidance={"images": 0})
    board.Reload()
    assert set(board.Tags()["scalars"]) >= CURVES | RESULTS
    metrics = json.loads((watched / "metrics.json").read_text())
    case = metrics["cases"][0]["name"]
    assert {f"overlay/{case}", f"final/{case}", "chart/reliability"} <= set(board.Tags()["images"])
    assert len(board.Images("chart/reliability")) == 2
    assert board.Scalars("final/lesion_dsc")[0].value == pytest.approx(
        metrics["lesion"]["dsc"]["mean"], abs=1e-6
    )


ONLY_IN_FP16 = {"train/loss_scale"}


def logged_names(run_dir):
    """The names of values, pictures and tables in both loggers, without those of wandb's own."""
    pytest.importorskip("tensorboard", reason="needs the extra tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (run,) = read_runs(run_dir / "wandb")
    names = {name for row in (run.summary, *run.history) for name in row if name[0] != "_"}
    media = {name.removesuffix("/path") for name in names if name.endswith("/path")}
    board = EventAccumulator(str(run_dir / "tensorboard"))
    board.Reload()
    tags = [tag for kind in ("scalars", "images") for tag in board.Tags()[kind]]
    parts = tuple(f"{name}/" for name in media)
    return media | {name for name in names if not name.startswith(parts)} | set(tags)


def test_the_page_of_dashboards_has_the_names_that_are_logged(watched):
    metrics = json.loads((watched / "metrics.json").read_text())
    stand_for = {
        "region": ["whole_pancreas", "pancreas", "lesion"],
        "subtype": ["0", "1", "2"],
        "target": [target["name"] for target in metrics["targets"]],
        "case": [case["name"] for case in metrics["cases"]],
    }
    page = (ROOT / "docs" / "dashboards.md").read_text().partition("## Where")[0]
    written = {
        n for cell in re.findall(r"^\| (`.*?) \|", page, re.M) for n in cell.split("`")[1::2]
    }
    logged = logged_names(watched)
    matched = {
        name: {
            one
            for one in logged
            if re.fullmatch(
                re.sub("<(.+?)>", lambda found: f"({'|'.join(stand_for[found[1]])})", name), one
            )
        }
        for name in written
    }
    assert {name for name in matched if not matched[name]} == ONLY_IN_FP16
    assert logged == set().union(*matched.values())
    with (watched / "metrics.csv").open() as file:
        columns = set(next(csv.reader(file)))
    curves = {name for name in logged if name.startswith(("train/", "lr/", "val/"))}
    of_epochs = {name.removesuffix("_epoch") for name in curves if not name.endswith("_step")}
    assert columns == {"epoch", "step"} | of_epochs


def test_the_folder_holds_the_pictures_that_the_loggers_show(watched):
    pictures = watched / "pictures"
    for case in json.loads((watched / "metrics.json").read_text())["cases"]:
        assert (pictures / "final" / f"{case['name']}.png").stat().st_size > 10_000
    assert (pictures / "curves.png").exists()
    shown = sorted((watched / "wandb").rglob("media/images/chart/reliability*.png"))
    drawn = sorted((pictures / "chart" / "reliability").glob("*.png"))
    assert {one.read_bytes() for one in shown} == {one.read_bytes() for one in drawn}


def test_the_layout_of_nnunet_trains(tmp_path):
    write_dataset(
        tmp_path / "data", num_train=10, num_validation=0, num_test=1, size="small", layout="nnunet"
    )
    (root,) = (tmp_path / "data").glob("Dataset*")
    run(
        "train.py",
        "data=nnunet",
        f"data.root={root}",
        f"output_dir={tmp_path / 'run'}",
        f"paths.outputs={tmp_path / 'o'}",
        *TINY,
        "trainer.max_epochs=1",
    )
    assert (tmp_path / "run" / "bundle" / "plan.json").exists()


def test_a_real_ct_keeps_its_geometry(trained, real_ct, tmp_path):
    image = real_ct / "example_ct.nii.gz"
    run(
        "predict.py",
        f"model={trained / 'bundle'}",
        f"input={image}",
        f"output_dir={tmp_path / 'p'}",
        "preset=single",
    )
    source, mask = nib.load(image), nib.load(tmp_path / "p" / "example_ct.nii.gz")
    assert mask.shape == source.shape
    np.testing.assert_array_equal(mask.affine, source.affine)
    for key in (
        "pixdim",
        "qform_code",
        "sform_code",
        "srow_x",
        "srow_y",
        "srow_z",
        "quatern_b",
        "quatern_c",
        "quatern_d",
        "qoffset_x",
        "qoffset_y",
        "qoffset_z",
        "xyzt_units",
    ):
        np.testing.assert_array_equal(mask.header[key], source.header[key], err_msg=key)


@pytest.mark.slow
def test_one_real_ct_is_learned_by_heart(real_ct, tmp_path):
    """Plumbing on real voxels: six copies of one crop, of which one validates; no claim beyond."""
    image, mask = nib.load(real_ct / "example_ct.nii.gz"), nib.load(real_ct / "pancreas.nii.gz")
    labels = (np.asarray(mask.dataobj) > 0.5).astype(np.uint8)
    inside = np.argwhere(labels)
    low, high = (inside.min(0) - 8).clip(0), inside.max(0) + 9
    box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    part = tmp_path / "data" / "train" / "subtype0"
    part.mkdir(parents=True)
    for copy in range(6):
        nib.save(image.slicer[box], part / f"quiz_0_{copy}_0000.nii.gz")
        crop = nib.Nifti1Image(labels[box], image.slicer[box].affine)
        nib.save(crop, part / f"quiz_0_{copy}.nii.gz")
    run(
        "train.py",
        "data=quiz",
        f"data.root={tmp_path / 'data'}",
        f"output_dir={tmp_path / 'run'}",
        f"paths.outputs={tmp_path / 'o'}",
        "budget=minutes",
        "plan.spacing_mm=[3,2.5,2.5]",
        "plan.patch_size=[24,40,40]",
        "augment=none",
        "audit=false",
        "trainer=cpu",
        "trainer.max_epochs=8",
        "validate_every=8",
        "optimizer.lr=4e-3",
        "sampling.read_margin=1",
        "sampling.workers=0",
        "loss.subtype_weight=0",
        "task.score.lesion_dsc=0",  # the mask has no lesion
        "task.score.macro_f1=0",
        "task.score.balanced_probability=0",
        "optimizer.ema=0.9",
        "workers=1",
    )
    run(
        "predict.py",
        f"model={tmp_path / 'run' / 'bundle'}",
        f"input={part / 'quiz_0_0_0000.nii.gz'}",
        f"output_dir={tmp_path / 'p'}",
        "preset=single",
    )
    predicted = read_mask(tmp_path / "p" / "quiz_0_0.nii.gz").array > 0
    assert dsc(predicted, read_mask(part / "quiz_0_0.nii.gz").array > 0) >= 0.85
    assert read_image(part / "quiz_0_0_0000.nii.gz").array.shape == predicted.shape
