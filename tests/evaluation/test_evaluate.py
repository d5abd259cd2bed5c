from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import yaml

from pancreas_mtl.errors import UsageError
from pancreas_mtl.evaluation.evaluate import evaluate
from pancreas_mtl.evaluation.references import Reference, read_references
from pancreas_mtl.evaluation.results import CaseResult, write_results
from pancreas_mtl.evaluation.summary import subtype_metrics
from pancreas_mtl.evaluation.table import render_table
from pancreas_mtl.evaluation.task import Task
from pancreas_mtl.metrics.segmentation import compare_masks

REPOSITORY = Path(__file__).resolve().parents[2]
SPACING_MM = (2.0, 0.7, 0.9)
SHAPE = (8, 14, 12)
DIAGONAL_MM = float(np.linalg.norm(np.multiply(SHAPE, SPACING_MM)))
TASK = Task(**yaml.safe_load((REPOSITORY / "conf" / "task" / "pancreas.yaml").read_text()))
TASK = replace(TASK, bootstrap_resamples=50)


REGION_KEYS = {"dsc", "nsd", "nsd_tolerance_mm", "hd95_mm"}
SUBTYPE_KEYS = {"macro_f1", "balanced_accuracy", "auroc", "ece", "brier", "confusion_matrix"}
CASE_KEYS = {"name", "whole_pancreas_dsc", "pancreas_dsc", "lesion_dsc", "lesion_hd95_mm"}


def organ(lesion: int = 4, shift: int = 0) -> np.ndarray:
    """A pancreas with a lesion of some rows inside, (D, H, W)."""
    labels = np.zeros(SHAPE, np.uint8)
    labels[2:6, 2 + shift : 11 + shift, 3:9] = 1
    labels[3:5, 4 + shift : 4 + lesion + shift, 4:7] = 2
    return labels


def write_mask(path: Path, labels: np.ndarray, spacing_mm=SPACING_MM) -> Path:
    """Write (D, H, W) labels as a file oriented LPS."""
    path.parent.mkdir(parents=True, exist_ok=True)
    d, h, w = spacing_mm
    nib.save(nib.Nifti1Image(labels.transpose(2, 1, 0), np.diag([-w, -h, d, 1.0])), path)
    return path


def write_csv(path: Path, *rows: tuple) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)


@pytest.fixture
def references(tmp_path) -> Path:
    """Six cases, two of each subtype, with lesions of 4 rows down to none in the last and first."""
    folder = tmp_path / "references"
    for number in range(6):
        write_mask(folder / f"case{number}.nii.gz", organ(lesion=number and 5 - number))
    subtypes = [(f"case{number}.nii.gz", number % 3) for number in range(6)]
    write_csv(folder / "subtypes.csv", ("Names", "Subtype"), *subtypes)
    return folder


@pytest.fixture
def predictions(tmp_path, references) -> Path:
    """All six, moved by a row, with one subtype wrong."""
    return write_predictions(tmp_path / "predictions", range(6))


def write_predictions(folder: Path, numbers) -> Path:
    answers, rows = [], []
    for number in numbers:
        name = f"case{number}.nii.gz"
        write_mask(folder / name, organ(lesion=number and 5 - number, shift=1))
        subtype = 0 if number == 1 else number % 3
        answers.append((name, subtype))
        members = "|".join(map(str, sorted({subtype, 2})))
        rows.append((name, *(0.1 + 0.7 * np.eye(3)[subtype]), members))
    write_csv(folder / "subtype_results.csv", ("Names", "Subtype"), *answers)
    write_csv(
        folder / "subtype_probabilities.csv", ("Names", "p0", "p1", "p2", "conformal_set"), *rows
    )
    return folder


def run(predictions, references, **options):
    return evaluate(predictions, read_references(references), task=TASK, **options)


def document(metrics) -> dict:
    """As it would be read from `metrics.json`; NaN and infinity are refused."""
    return json.loads(json.dumps(metrics.as_json(), allow_nan=False))


# The document


def test_it_has_the_keys_that_users_rely_on(predictions, references):
    found = document(run(predictions, references))
    assert (found["schema"], found["n_cases"], len(found["cases"])) == (1, 6, 6)
    for region in ("whole_pancreas", "pancreas", "lesion"):
        assert found[region].keys() >= REGION_KEYS
        assert found[region]["dsc"].keys() == {"mean", "ci95"}
        assert found[region]["nsd_tolerance_mm"] == 1
    assert found["subtype"].keys() >= SUBTYPE_KEYS
    assert found["subtype"]["macro_f1"].keys() == {"mean", "ci95"}
    assert np.shape(found["subtype"]["confusion_matrix"]) == (3, 3)
    low, high = found["subtype"]["brier_ci95"]
    assert low < found["subtype"]["brier"] < high
    for target in found["targets"]:
        assert target.keys() == {"name", "target", "value", "ci95", "met"}
    for case in found["cases"]:
        assert case.keys() >= CASE_KEYS | {"subtype", "subtype_predicted"}
        assert case.keys() == found["cases"][0].keys()
    assert found["predictions"] == str(predictions)
    assert found["references"] == str(references)


def test_scores_are_those_of_the_masks_in_their_own_axes(predictions, references):
    found = document(run(predictions, references))
    prediction, reference = organ(lesion=3, shift=1), organ(lesion=3)
    regions = {
        "whole_pancreas": (prediction > 0, reference > 0),
        "pancreas": (prediction == 1, reference == 1),
        "lesion": (prediction == 2, reference == 2),
    }
    for name, (a, b) in regions.items():
        expected = compare_masks(a, b, SPACING_MM, tolerance_mm=1.0)
        for key in ("dsc", "nsd", "hd95_mm", "assd_mm", "volume_ml", "reference_volume_ml"):
            assert found["cases"][2][f"{name}_{key}"] == pytest.approx(getattr(expected, key))
        values = [case[f"{name}_dsc"] for case in found["cases"]]
        assert found[name]["dsc"]["mean"] == pytest.approx(np.mean(values))
        low, high = found[name]["dsc"]["ci95"]
        assert low <= found[name]["dsc"]["mean"] <= high


def test_targets_follow_from_the_values(predictions, references):
    found = document(run(predictions, references))
    names = [target["name"] for target in found["targets"]]
    assert names == ["whole_pancreas_dsc", "lesion_dsc", "macro_f1"]
    whole, lesion, f1 = found["targets"]
    assert (whole["value"], whole["ci95"]) == tuple(found["whole_pancreas"]["dsc"].values())
    assert whole["target"] == 0.91
    assert not whole["met"]
    assert lesion["met"]
    assert f1["value"] == pytest.approx((0.8 + 2 / 3 + 1) / 3)  # one of subtype 1 taken for 0
    assert f1["met"]


def test_a_perfect_prediction_meets_every_target(references):
    found = document(run(references, references))  # without probabilities
    assert found["whole_pancreas"]["dsc"] == {"mean": 1, "ci95": [1, 1]}
    assert found["lesion"]["hd95_mm"] == {"mean": 0, "ci95": [0, 0]}
    masks = found["targets"][:2]
    assert [target["met"] for target in masks] == [True, True]


def test_the_same_input_gives_the_same_document(predictions, references):
    one, two = (document(run(predictions, references)) for _ in range(2))
    assert one == two


def test_the_csv_file_holds_a_row_per_case(predictions, references, tmp_path):
    metrics = run(predictions, references)
    paths = write_results(metrics, tmp_path)
    assert [path.name for path in paths] == ["metrics.json", "metrics.csv"]
    assert json.loads(paths[0].read_text()) == document(metrics)
    with paths[1].open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == [f"case{number}" for number in range(6)]
    assert float(rows[2]["lesion_dsc"]) == metrics.cases[2].masks.regions["lesion"].dsc
    assert rows[0]["lesion_relative_volume_error"] == ""
    assert rows[0]["conformal_set"] == "0|2"
    assert not list(tmp_path.glob(".*"))


# What is missing, and what cannot be used


def test_a_missing_prediction_counts_as_the_worst_and_is_listed(tmp_path, references):
    predictions = write_predictions(tmp_path / "some", [0, 2, 3, 4, 5])
    metrics = run(predictions, references)
    found = document(metrics)
    assert found["missing"] == ["case1"]
    case = found["cases"][1]
    assert case["missing"]
    assert (case["whole_pancreas_dsc"], case["lesion_nsd"]) == (0, 0)
    assert case["lesion_hd95_mm"] == case["whole_pancreas_assd_mm"] == pytest.approx(DIAGONAL_MM)
    assert (case["lesions_reference"], case["lesions_predicted"]) == (1, 0)
    assert (case["subtype_predicted"], case["subtype_probabilities"]) == (None, None)
    assert found["subtype"]["unpredicted"] == [0, 1, 0]
    assert found["subtype"]["macro_f1"]["mean"] == pytest.approx((1 + 2 / 3 + 1) / 3)
    right, wrong = 0.2**2 + 2 * 0.1**2, 2
    assert found["subtype"]["brier"] == pytest.approx((5 * right + wrong) / 6)
    assert "case1" in render_table(metrics)


def test_a_missing_prediction_is_worst_even_where_there_is_no_lesion(tmp_path, references):
    found = document(run(write_predictions(tmp_path / "some", [1, 2, 3, 4, 5]), references))
    assert found["cases"][0]["lesion_dsc"] == 0
    assert found["cases"][0]["lesion_absolute_volume_error_ml"] is None
    assert found["cases"][0]["pancreas_absolute_volume_error_ml"] > 0
    assert found["cases"][5]["lesion_dsc"] == 1  # two empty masks agree
    assert found["cases"][5]["lesion_absolute_volume_error_ml"] == 0


@pytest.mark.parametrize("gone", [0, 2])
def test_no_score_gains_by_a_missing_prediction(tmp_path, predictions, references, gone):
    rest = write_predictions(tmp_path / "rest", [n for n in range(6) if n != gone])
    scores = np.where(organ(shift=4) == 2, 0.5, 0).astype(np.float32)  # in vain
    for number in range(6):
        for folder in (predictions, rest)[: 1 + (number != gone)]:
            write_mask(folder / "lesion_candidates" / f"case{number}.nii.gz", scores)
    whole, less = (document(run(folder, references)) for folder in (predictions, rest))

    def mean(found, *path):
        for key in path:
            found = found[key]
        return found["mean"] if isinstance(found, dict) else found

    for region in ("whole_pancreas", "pancreas", "lesion"):
        for score in ("dsc", "nsd", "hd95_mm", "assd_mm"):
            sign = -1 if score.endswith("_mm") else 1
            assert sign * mean(less, region, score) <= sign * mean(whole, region, score)
    for score in ("macro_f1", "balanced_accuracy", "mcc", "auroc"):
        assert mean(less, "subtype", score) < mean(whole, "subtype", score)
    for score in ("ece", "brier"):
        assert mean(less, "subtype", score) > mean(whole, "subtype", score)
    conformal = ("subtype", "conformal")
    assert mean(less, *conformal, "coverage") < mean(whole, *conformal, "coverage")
    assert mean(less, *conformal, "mean_size") > mean(whole, *conformal, "mean_size")
    for score in ("sensitivity", "f1"):
        lesions = ("lesion_detection", score)
        assert mean(less, *lesions) <= mean(whole, *lesions)
    rates = [d["lesion_detection"]["froc"]["false_positives_per_case"] for d in (less, whole)]
    assert rates[0] == rates[1]


def test_no_subtype_is_told_apart_better_for_a_missing_prediction():
    answers = [(0.5, 0.1, 0.4), (0.3, 0.4, 0.3), (0.4, 0.3, 0.3), (0.2, 0.2, 0.6)]
    cases = [
        CaseResult(str(number), False, None, subtype, int(np.argmax(p)), p, None)
        for number, (subtype, p) in enumerate(zip((0, 1, 2, 2), answers, strict=True))
    ]
    missing = replace(cases[0], subtype_predicted=None, subtype_probabilities=None)
    whole, less = (subtype_metrics(some, TASK) for some in (cases, [missing, *cases[1:]]))
    for before, after in zip(whole.per_class, less.per_class, strict=True):
        assert after.auroc <= before.auroc
    assert less.auroc.mean < whole.auroc.mean
    assert less.per_class[0].auroc == 0


def test_missing_predictions_can_be_left_out(tmp_path, references):
    predictions = write_predictions(tmp_path / "fold", [1, 2])
    found = document(run(predictions, references, missing="skip"))
    assert [case["name"] for case in found["cases"]] == ["case1", "case2"]
    assert found["missing"] == []
    with pytest.raises(UsageError, match="missing=best: choose worst or skip"):
        run(predictions, references, missing="best")


@pytest.mark.parametrize(
    ("break_it", "reason"),
    [
        (lambda path: write_mask(path, organ()[:, :, 1:]), "is not on the grid of"),
        (lambda path: write_mask(path, organ(), (2.0, 0.7, 1.0)), "is not on the grid of"),
        (lambda path: write_mask(path, organ() * 3), "holds the value"),
        (lambda path: path.write_bytes(path.read_bytes()[:60]), "is truncated or damaged"),
    ],
)
def test_a_prediction_that_cannot_be_used_fails_alone(predictions, references, break_it, reason):
    break_it(predictions / "case3.nii.gz")
    found = document(run(predictions, references))
    (failure,) = found["failures"]
    assert failure["name"] == "case3"
    assert reason in failure["error"]
    assert found["cases"][3]["whole_pancreas_dsc"] == 0
    assert found["cases"][2]["whole_pancreas_dsc"] > 0.8
    assert found["missing"] == []


def test_a_reference_that_cannot_be_read_is_left_out_of_the_means(predictions, references):
    (references / "case3.nii.gz").write_bytes(b"nothing")
    found = document(run(predictions, references))
    assert [failure["name"] for failure in found["failures"]] == ["case3"]
    assert found["cases"][3]["whole_pancreas_dsc"] is None
    assert found["whole_pancreas"]["n_cases"] == 5
    assert found["subtype"]["n_cases"] == 6


def test_a_prediction_without_reference_is_listed(predictions, references):
    write_mask(predictions / "other.nii.gz", organ())
    found = document(run(predictions, references))
    assert found["unreferenced"] == ["other"]
    assert found["n_cases"] == 6


def test_masks_alone_leave_the_subtype_undefined(predictions, references):
    for path in predictions.glob("*.csv"):
        path.unlink()
    found = document(run(predictions, references))
    assert found["subtype"]["n_cases"] == 0
    assert found["subtype"]["macro_f1"] == {"mean": None, "ci95": None}
    assert found["subtype"]["ece"] is found["subtype"]["brier"] is None
    assert found["missing"] == []
    for group in found["by_subtype"] + found["by_lesion_size"]:
        assert group["subtype_accuracy"] == {"mean": None, "ci95": None}
    assert found["targets"][2]["met"] is None
    assert "not measured" in render_table(run(predictions, references))


def test_subtypes_alone_leave_the_masks_undefined(predictions, references):
    for path in predictions.glob("*.nii.gz"):
        path.unlink()
    found = document(run(predictions, references))
    assert found["lesion"]["dsc"] == {"mean": None, "ci95": None}
    assert found["subtype"]["n_cases"] == 6
    assert found["missing"] == []


def test_subtypes_without_probabilities(predictions, references):
    (predictions / "subtype_probabilities.csv").unlink()
    found = document(run(predictions, references))
    assert found["subtype"]["macro_f1"]["mean"] > 0.8
    assert found["subtype"]["auroc"] == {"mean": None, "ci95": None}
    assert found["subtype"]["per_class"][0]["auroc"] is None
    assert found["subtype"]["reliability"] == []


def test_a_single_case_has_no_interval(predictions):
    reference = Reference("case1", predictions / "case1.nii.gz", 1)
    found = document(evaluate(predictions, [reference], task=TASK))
    assert found["whole_pancreas"]["dsc"] == {"mean": 1, "ci95": None}
    assert found["subtype"]["auroc"] == {"mean": None, "ci95": None}
    assert found["subtype"]["macro_f1"] == {"mean": 0, "ci95": None}


def test_nothing_in_common_is_refused(predictions):
    with pytest.raises(UsageError, match="predictions hold case0, references hold another, and no"):
        evaluate(predictions, [Reference("another")], task=TASK)


# Several folders


def test_folds_are_joined(tmp_path, predictions, references):
    folds = [write_predictions(tmp_path / f"fold{k}", [k, k + 3]) for k in range(3)]
    joined = document(run(folds, references))
    assert joined["predictions"] == [str(fold) for fold in folds]
    whole = document(run(predictions, references))
    assert {**joined, "predictions": None} == {**whole, "predictions": None}


def test_a_case_in_two_folders_is_refused(tmp_path, predictions, references):
    again = write_predictions(tmp_path / "again", [2])
    with pytest.raises(UsageError, match=f"case2 is in {predictions} and in {again}"):
        run([predictions, again], references)


# Parts of the document


def test_groups_of_cases(predictions, references):
    volume_ml = 2 * 3 * np.prod(SPACING_MM) / 1000  # of one row of a lesion
    task = replace(TASK, lesion_size_limits_ml=(1.5 * volume_ml, 3.5 * volume_ml))
    metrics = evaluate(predictions, read_references(references), task=task)
    found = document(metrics)
    assert [group["n_cases"] for group in found["by_lesion_size"]] == [2, 1, 2, 1]
    assert found["by_lesion_size"][0]["name"] == "no lesion"
    assert found["by_lesion_size"][0]["lesion_sensitivity"]["mean"] is None
    assert [group["n_cases"] for group in found["by_subtype"]] == [2, 2, 2]
    assert [group["subtype_accuracy"]["mean"] for group in found["by_subtype"]] == [1, 0.5, 1]
    dsc = [found["cases"][k]["lesion_dsc"] for k in (2, 3)]
    assert found["by_lesion_size"][2]["lesion_dsc"]["mean"] == pytest.approx(np.mean(dsc))


def test_lesions_as_objects(predictions, references):
    """The lesion of one row, moved by a row, is missed; the other three are found."""
    labels = organ(lesion=4, shift=1)
    labels[5, 10, 8] = 2  # and a speck is reported in vain
    write_mask(predictions / "case1.nii.gz", labels)
    found = document(run(predictions, references))["lesion_detection"]
    assert (found["n_reference"], found["n_predicted"], found["n_found"]) == (4, 5, 3)
    assert found["sensitivity"]["mean"] == 0.75
    assert found["precision"]["mean"] == 0.6
    assert found["f1"]["mean"] == pytest.approx(2 / 3)
    assert found["hit_iou"] == 0.1
    assert found["froc"] is None


def test_froc_of_lesion_candidates(predictions, references):
    for number, score in ((1, 0.9), (2, 0.4)):
        scores = np.where(organ(lesion=5 - number) == 2, score, 0).astype(np.float32)
        scores[0, 0, 0] = 0.5
        write_mask(predictions / "lesion_candidates" / f"case{number}.nii.gz", scores)
    froc = document(run(predictions, references))["lesion_detection"]["froc"]
    assert froc["thresholds"] == pytest.approx([0.9, 0.5, 0.4])
    assert froc["sensitivity"] == [0.25, 0.25, 0.5]
    assert froc["false_positives_per_case"] == [0, 1, 1]  # of the two cases with candidates


def test_conformal_sets(predictions, references):
    """The sets hold the predicted subtype and 2: all right but for the one taken for 0."""
    found = document(run(predictions, references))["subtype"]["conformal"]
    assert found["target_coverage"] == 0.9
    assert found["coverage"]["mean"] == pytest.approx(5 / 6)
    assert found["mean_size"]["mean"] == pytest.approx((4 * 2 + 2 * 1) / 6)


def test_the_table_names_targets_and_artefacts(predictions, references):
    text = render_table(run(predictions, references), artefacts=[Path("out/[x]/metrics.json")])
    assert text.isascii()
    assert "| whole-pancreas DSC " in text
    assert "not met" in text
    assert "out/[x]/metrics.json" in text
    assert "subtype 2" in text
    assert "\x1b[" in render_table(run(predictions, references), colour=True)


def test_the_goal_of_conformal_sets_is_what_they_state(predictions, references):
    stated = {"cases": [], "failures": [], "conformal_coverage": 0.8}
    (predictions / "run.json").write_text(json.dumps(stated))
    found = document(run(predictions, references))["subtype"]["conformal"]
    assert found["target_coverage"] == 0.8


def test_sets_of_several_coverages_are_refused(predictions, references, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    header = "Names,p0,p1,p2,conformal_set"
    (other / "subtype_probabilities.csv").write_text(f"{header}\nmore.nii.gz,1,0,0,0\n")
    for folder, coverage in ((predictions, 0.9), (other, 0.8)):
        stated = {"cases": [], "failures": [], "conformal_coverage": coverage}
        (folder / "run.json").write_text(json.dumps(stated))
    references = read_references(references)
    with pytest.raises(UsageError, match=r"state coverages of \[0.8, 0.9\]: give those of"):
        evaluate([predictions, other], references, task=TASK)
