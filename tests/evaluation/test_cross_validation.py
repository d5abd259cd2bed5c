import csv
import json
import shutil
import sys

import nibabel as nib
import numpy as np
import pytest
import torch
import yaml

from pancreas_mtl import Predictor
from pancreas_mtl.data.images import read_image, read_mask, to_source
from pancreas_mtl.errors import UsageError
from pancreas_mtl.evaluate import main
from pancreas_mtl.evaluation.calibrate import LESION_BIASES
from pancreas_mtl.evaluation.cross_validation import cross_validate, gather, make_ensemble
from pancreas_mtl.evaluation.folds import check_runs, find_runs
from pancreas_mtl.evaluation.held_out import (
    LOSSES,
    calibrate,
    predict_held_out,
    read_held_out,
    read_losses,
    write_calibrated,
)
from pancreas_mtl.evaluation.references import Reference
from pancreas_mtl.inference.bundle import bundle_digest, load_bundle, save_bundle
from pancreas_mtl.inference.calibration import Calibration, read_calibration, save_calibration
from pancreas_mtl.models.network import MultitaskUNet, NetworkConfig
from pancreas_mtl.types import Case, Intensity, Plan

MODEL = {"head": "lesion", "stages": [0, 1], "hidden": 8, "dropout": 0.0, "detach_head": False}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("folds")


@pytest.fixture(scope="module")
def cases(folder):
    """Twelve noisy images with a mask and a subtype each, in the quiz layout; one has no mask."""
    rng, found = np.random.default_rng(0), []
    mask = np.zeros((12, 12, 8), np.uint8)
    mask[3:10, 3:9, 2:6] = 1
    mask[5:8, 4:7, 3:5] = 2
    affine = np.diag([-1.5, -2.0, 4.0, 1.0])
    for number in range(12):
        part = folder / "data" / "train" / f"subtype{number % 3}"
        part.mkdir(parents=True, exist_ok=True)
        image, path = (part / f"quiz_{number % 3}_{number:03}{end}.nii.gz" for end in ("_0000", ""))
        nib.save(nib.Nifti1Image(rng.normal(60, 50, mask.shape).astype(np.float32), affine), image)
        if number:
            nib.save(nib.Nifti1Image(mask, affine), path)
        found.append(Case(path.name[:-7], image, path if number else None, number % 3))
    return found


@pytest.fixture(scope="module")
def runs(folder, cases):
    """Two runs with random weights, six held-out cases each."""
    plan = Plan(
        spacing_mm=(4.0, 2.0, 1.5),
        patch_size=(8, 16, 16),
        batch_size=2,
        channels=(4, 8, 8),
        kernels=((1, 3, 3), (3, 3, 3), (3, 3, 3)),
        strides=((1, 1, 1), (1, 2, 2), (2, 2, 2)),
        intensity=Intensity(mean_hu=60.0, std_hu=50.0, low_hu=-100.0, high_hu=250.0),
    )
    config = {
        "model": MODEL,
        "augment": {"flip_p": 0.0},
        "data": {"layout": "quiz", "root": str(folder / "data")},
    }
    folders = []
    for fold in range(2):
        torch.manual_seed(fold)
        run = folder / "runs" / f"fold{fold}"
        network = MultitaskUNet(plan, NetworkConfig(**(MODEL | {"stages": (0, 1)})))
        save_bundle(run / "bundle", network.state_dict(), plan, config)
        held_out = [[case.name for case in cases[k::2]] for k in range(2)]
        splits = {"folds": [{"validation": names} for names in held_out]}
        (run / "splits.json").write_text(json.dumps(splits))
        (run / "config.yaml").write_text(yaml.safe_dump(config | {"fold": fold}))
        predict_held_out(run / "bundle", cases[fold::2], run / "oof")
        folders.append(run)
    return folders


def references(cases):
    return [Reference(case.name, case.mask, case.subtype) for case in cases]


def test_held_out_predictions_are_raw_and_come_with_the_masks_losses(runs, cases, tmp_path):
    oof, bundle = tmp_path / "oof", tmp_path / "bundle"
    shutil.copytree(runs[0] / "bundle", bundle)
    shutil.copytree(runs[0] / "oof", oof)  # as an earlier attempt may have left it
    save_calibration(bundle, Calibration(subtype_temperature=3.0))
    predict_held_out(bundle, cases[:2], oof)
    assert read_calibration(bundle) == Calibration()
    raw = Predictor.from_bundle(bundle).predict(read_image(cases[0].image))
    found = {case.name: case for case in read_held_out(oof, references(cases))}
    np.testing.assert_allclose(
        found[cases[0].name].probabilities, raw.subtype_probabilities, atol=1e-5
    )
    assert found.keys() == {cases[0].name, cases[1].name}
    assert read_losses(oof / LOSSES).keys() == {cases[1].name}, "the first has no mask"
    assert found[cases[0].name].masks is None
    assert len(found[cases[1].name].masks) == len(LESION_BIASES)


def test_one_runs_cases_are_calibrated_without_themselves(runs, cases, tmp_path):
    fitted = calibrate(runs[0] / "oof", references(cases), tmp_path / "out", coverage=0.9)
    assert fitted.fitted_on == "6 validation cases"
    assert len(fitted.conformity) == 6
    with (tmp_path / "out" / "subtype_probabilities.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 6
    assert {row["conformal_set"] for row in rows} == {"0|1|2"}, "too few cases exclude nothing"
    assert read_mask(tmp_path / "out" / f"{cases[0].name}.nii.gz").array.shape == (8, 12, 12)


def test_a_calibrated_case_is_what_prediction_gives_with_that_calibration(runs, cases, tmp_path):
    calibration = Calibration(
        subtype_temperature=2.0, lesion_bias=LESION_BIASES[1], largest_lesion=True
    )
    oof, bundle = runs[0] / "oof", tmp_path / "bundle"
    each = {case.name: calibration for case in cases[::2]}
    write_calibrated(oof, each, tmp_path / "calibrated")
    shutil.copytree(runs[0] / "bundle", bundle)
    save_calibration(bundle, calibration)
    predictor, changed = Predictor.from_bundle(bundle), []
    for case in cases[::2]:
        volume = read_image(case.image)
        expected = to_source(predictor.predict(volume).labels, volume.source)
        written = nib.load(tmp_path / "calibrated" / f"{case.name}.nii.gz").get_fdata()
        np.testing.assert_array_equal(written, expected)
        changed.append((nib.load(oof / f"{case.name}.nii.gz").get_fdata() != written).any())
    assert any(changed)


def evaluated_runs(runs, output_dir):
    """What the command finds of the runs, or of a folder of them."""
    named = f"[{','.join(map(str, runs))}]" if isinstance(runs, list) else runs
    arguments = [f"runs={named}", f"output_dir={output_dir}", "workers=1"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["evaluate", *arguments, "task.bootstrap_resamples=20"])
        main()
    return json.loads((output_dir / "metrics.json").read_text())


@pytest.fixture(scope="module")
def evaluated(runs, folder):
    evaluated_runs(runs[0].parent, folder / "cv")
    return folder / "cv"


def test_all_folds_become_figures_and_an_ensemble(evaluated, runs, cases):
    metrics = json.loads((evaluated / "metrics.json").read_text())
    assert [case["name"] for case in metrics["cases"]] == sorted(case.name for case in cases)
    assert metrics["lesion"]["n_cases"] == 11
    assert metrics["subtype"]["conformal"]["target_coverage"] == 0.9
    with (evaluated / "oof" / "folds.csv").open() as file:
        folds = {row["Names"]: row["Run"] for row in csv.DictReader(file)}
    assert folds[f"{cases[1].name}.nii.gz"] == "fold1"
    raw = (runs[1] / "oof" / "subtype_probabilities.csv").read_text().splitlines()
    gathered = (evaluated / "oof" / "subtype_probabilities.csv").read_text().splitlines()
    assert set(raw) < set(gathered)

    own, other = (load_bundle(evaluated / "ensemble" / f"fold{k}").calibration for k in (0, 1))
    assert own.fitted_on == other.fitted_on == "12 out-of-fold cases"
    assert own.subtype_temperature == other.subtype_temperature != 1
    assert own.mask_temperature == other.mask_temperature != 1
    held_out = read_held_out(runs[0] / "oof", references(cases))
    expected = sorted(c.probabilities[c.subtype] for c in held_out)
    assert own.conformity == pytest.approx(expected, abs=1e-6)
    assert own.cases != other.cases, "each knows what it had not seen itself"
    assert sorted(p[subtype] for p, subtype in own.answers) == pytest.approx(expected, abs=1e-6)
    assert read_calibration(runs[0] / "bundle") == Calibration(), "the runs stay as they were"


def test_the_ensemble_and_its_members_have_cards_of_their_own(evaluated, runs):
    metrics = json.loads((evaluated / "metrics.json").read_text())
    card = (evaluated / "ensemble" / "README.md").read_text()
    assert "fold0, fold1" in card
    assert f"Of the {metrics['n_cases']} out-of-fold cases" in card
    assert f"| Lesion DSC | {metrics['lesion']['dsc']['mean']:.3f} |" in card
    member = (evaluated / "ensemble" / "fold0" / "README.md").read_text()
    assert "\n## Metrics\n\nThis bundle is part of an ensemble and carries its calibr" in member
    assert "part of an ensemble" not in (runs[0] / "bundle" / "README.md").read_text()


def test_the_ensemble_is_one_model(evaluated, runs, cases):
    image = read_image(cases[0].image)
    together = Predictor.from_bundle(evaluated / "ensemble").predict(image)
    folds = [evaluated / "ensemble" / f"fold{k}" for k in (0, 1)]
    alone = [Predictor.from_bundle(fold).predict(image).subtype_probabilities for fold in folds]
    np.testing.assert_allclose(together.subtype_probabilities, np.mean(alone, axis=0), atol=1e-6)
    assert together.conformal_set is not None


def copied(run, folder, **config):
    """A copy of a run, with other settings."""
    shutil.copytree(run, folder)
    settings = yaml.safe_load((folder / "config.yaml").read_text())
    (folder / "config.yaml").write_text(yaml.safe_dump(settings | config))
    return folder


def test_a_case_in_two_runs_is_refused(runs, tmp_path):
    with pytest.raises(UsageError, match="each case may be predicted once"):
        gather({"a": runs[0], "b": runs[0]}, tmp_path / "oof")
    with pytest.raises(UsageError, match=r"a and b both held out .*list the runs of one seed"):
        check_runs({"a": runs[0], "b": runs[0]}, partial=True)


def test_cases_that_no_run_held_out_are_told(runs, tmp_path):
    with pytest.raises(UsageError, match=r"6 of 12 cases .*\(fold 1\): add these .*missing=skip"):
        cross_validate(runs[:1], tmp_path / "cv", coverage=0.9)
    assert not (tmp_path / "cv").exists()
    _, references = cross_validate(runs[:1], tmp_path / "cv", coverage=0.9, partial=True)
    assert len(references) == 6


def test_the_official_split_is_whole_by_itself(runs, tmp_path):
    check_runs({"a": copied(runs[0], tmp_path / "a", fold="official")}, partial=False)


def test_a_run_that_knows_what_it_held_out_is_refused(runs, tmp_path):
    run = copied(runs[0], tmp_path / "fold0")
    facts = {"data": {"held_out_known_to": ["A was trained on fold 1 of the same data"]}}
    (run / "run.json").write_text(json.dumps(facts))
    with pytest.raises(UsageError, match=r"fold0 may know .*\(A was trained.*; leave it out"):
        check_runs({"fold0": run, "fold1": runs[1]}, partial=False)


def test_runs_of_a_dataset_that_has_changed_are_refused(runs, tmp_path):
    run = copied(runs[0], tmp_path / "fold0")
    (run / "splits.json").write_text(json.dumps({"folds": []}))
    with pytest.raises(UsageError, match="fold0 and fold1 divide the cases differently"):
        check_runs({"fold0": run, "fold1": runs[1]}, partial=False)


def test_runs_of_two_datasets_are_told_as_such(runs, tmp_path):
    run = copied(runs[0], tmp_path / "fold0", data={"layout": "quiz", "root": str(tmp_path / "B")})
    (run / "splits.json").write_text(json.dumps({"folds": []}))
    with pytest.raises(UsageError, match=r"trained on different datasets .*: give those of one"):
        cross_validate([run, runs[1]], tmp_path / "cv", coverage=0.9)


def test_other_settings_of_a_run_are_told(runs, tmp_path, caplog):
    run = copied(runs[0], tmp_path / "fold0", seed=7, paths={"runs": "A"})
    other = copied(runs[1], tmp_path / "fold1", seed=0)
    check_runs({"fold0": run, "fold1": other}, partial=False)
    assert [one.message for one in caplog.records] == ["runs: fold0 and fold1 differ in seed"]


def test_a_held_out_case_that_failed_is_the_worst(runs, cases, tmp_path):
    """As where one run is evaluated: nothing is better for having failed."""
    broken = tmp_path / "fold0"
    shutil.copytree(runs[0], broken)
    record = json.loads((broken / "oof" / "run.json").read_text())
    lost = record["cases"].pop()
    failure = {"name": lost["name"], "input": lost["input"], "error": "memory ran out"}
    (broken / "oof" / "run.json").write_text(json.dumps(record | {"failures": [failure]}))
    (broken / "oof" / f"{lost['name']}.nii.gz").unlink()
    for table in ("subtype_results.csv", "subtype_probabilities.csv", LOSSES):
        rows = (broken / "oof" / table).read_text().splitlines()
        kept = [row for row in rows if not row.startswith(lost["name"])]
        (broken / "oof" / table).write_text("\n".join(kept) + "\n")
    metrics = evaluated_runs([broken, runs[1]], tmp_path / "cv")
    assert metrics["missing"] == [lost["name"]]
    assert metrics["n_cases"] == len(cases)


def test_an_ensemble_that_was_not_finished_is_not_there(runs, cases, tmp_path, monkeypatch):
    cross_validate(runs, tmp_path, coverage=0.9)
    before = bundle_digest(tmp_path / "ensemble" / "fold1")

    def stop(bundle):
        raise KeyboardInterrupt

    monkeypatch.setattr("pancreas_mtl.evaluation.cross_validation.save_member_card", stop)
    with pytest.raises(KeyboardInterrupt):
        make_ensemble(find_runs(runs), [], tmp_path / "ensemble", coverage=0.9)
    assert bundle_digest(tmp_path / "ensemble" / "fold1") == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["calibrated", "ensemble", "oof"]


@pytest.mark.parametrize("name", ["oof", "calibrated", "ensemble"])
def test_what_no_evaluation_wrote_is_left_alone(runs, tmp_path, name):
    (tmp_path / name).mkdir()
    (tmp_path / name / "notes.txt").touch()
    with pytest.raises(UsageError, match=f"holds {name}, which no evaluation wrote; give another"):
        cross_validate(runs, tmp_path, coverage=0.9)
    assert [path.name for path in tmp_path.rglob("*")] == [name, "notes.txt"]


def test_what_is_no_finished_run_is_refused(runs, tmp_path):
    with pytest.raises(UsageError, match="no training run in it"):
        find_runs([runs[0] / "oof"])
    (tmp_path / "fold1").mkdir()
    shutil.copy(runs[1] / "splits.json", tmp_path / "fold1")
    with pytest.raises(UsageError, match="fold1 is not finished"):
        find_runs([tmp_path])


def test_runs_of_one_name_get_different_short_names(runs):
    assert list(find_runs([runs[0], runs[0]])) == ["0-fold0", "1-fold0"]


def test_runs_do_not_go_with_predictions(tmp_path, monkeypatch, capsys):
    for arguments in (["runs=a", "predictions=b"], ["predictions=a"], []):
        monkeypatch.setattr(sys, "argv", ["evaluate", *arguments, f"output_dir={tmp_path}"])
        with pytest.raises(SystemExit, match="2"):
            main()
        assert "or runs=[DIR,...] of all folds" in capsys.readouterr().err
