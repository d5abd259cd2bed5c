import csv
import json

import numpy as np
import pytest
from scipy import stats

from pancreas_mtl.evaluation.trial_table import (
    read_outcomes,
    render_markdown,
    student_interval,
    summarise,
    write_csv,
)
from pancreas_mtl.evaluation.trials import Laboratory, list_trials

SUBTYPES = [0, 1, 2] * 8


def write_metrics(folder, dsc, predicted, sets=None):
    """A metrics.json with one whole DSC for all cases and the given answers."""
    rows = [
        {
            "name": f"case{n:02}",
            "whole_pancreas_dsc": dsc,
            "lesion_dsc": dsc / 2,
            "subtype": subtype,
            "subtype_predicted": answer,
            "subtype_probabilities": [0.8 if s == answer else 0.1 for s in range(3)],
            "conformal_set": None if sets is None else sets[n],
        }
        for n, (subtype, answer) in enumerate(zip(SUBTYPES, predicted, strict=True))
    ]
    (folder / "evaluation").mkdir(parents=True)
    (folder / "evaluation" / "metrics.json").write_text(json.dumps({"cases": rows[::-1]}))
    (folder / "seconds.jsonl").write_text('["train", 60.0]\n["train", 120.0]\n')


@pytest.fixture
def outcomes(tmp_path):
    """`one` always says 1, `right` is right; three seeds each, and one that is not finished."""
    trials = list_trials({"one": [], "right": [], "unfinished": []}, [0, 1, 2], [])
    laboratory = Laboratory(tmp_path)
    for trial in trials:
        if trial.configuration == "one":
            write_metrics(laboratory.folder(trial), 0.8 + 0.01 * trial.seed, [1] * 24)
        elif trial.configuration == "right":
            sets = [[s] if n % 4 else [] for n, s in enumerate(SUBTYPES)]
            write_metrics(laboratory.folder(trial), 0.9, SUBTYPES, sets)
    return read_outcomes(trials, laboratory)


def test_means_over_seeds_and_differences_to_the_first(outcomes):
    lines = {(line.configuration, line.metric): line for line in summarise(outcomes, resamples=50)}
    assert lines["one", "macro_f1"].mean == pytest.approx(0.5 / 3)
    assert lines["one", "macro_f1"].difference is None
    right = lines["right", "macro_f1"]
    assert right.mean == 1
    assert right.difference == pytest.approx(1 - 0.5 / 3)
    whole = lines["one", "whole_pancreas_dsc"]
    assert whole.per_seed == pytest.approx({0: 0.80, 1: 0.81, 2: 0.82})
    assert whole.ci95_cases == pytest.approx((0.81, 0.81))
    assert lines["right", "whole_pancreas_dsc"].difference == pytest.approx(0.09)
    assert lines["right", "lesion_dsc"].mean == pytest.approx(0.45)
    assert lines["one", "ece"].mean == pytest.approx(0.8 - 1 / 3)
    assert lines["right", "coverage"].mean == pytest.approx(0.75)
    assert lines["right", "set_size"].mean == pytest.approx(0.75)
    assert ("one", "coverage") not in lines


def test_the_interval_over_cases_has_the_width_of_the_standard_error():
    """Whether a case is right is a coin: the DSC's mean over one seed has a known spread."""
    from pancreas_mtl.evaluation import trial_table
    from pancreas_mtl.evaluation.trials import Trial

    values = np.random.default_rng(0).normal(size=400)
    zeros = np.zeros(400, int)
    outcome = trial_table.Outcome(
        trial=Trial("a", 0, ()),
        whole_pancreas_dsc=values,
        lesion_dsc=values,
        subtype=zeros,
        predicted=zeros,
        probabilities=np.ones((400, 3)) / 3,
        ranks=np.ones((400, 3)) / 3,
        in_set=values,
        set_size=values,
        has_subtypes=True,
        training_s=1.0,
        revision="",
    )
    (line,) = [one for one in summarise([outcome]) if one.metric == "lesion_dsc"]
    low, high = line.ci95_cases
    assert high - low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.08)


def test_a_difference_is_that_over_the_seeds_of_both(outcomes):
    """`one` gains a hundredth with every seed; over seeds 0 and 1 its mean is .805."""
    some = [o for o in outcomes if (o.trial.configuration, o.trial.seed) != ("right", 2)]
    (whole,) = [
        line
        for line in summarise(some, resamples=20)
        if (line.configuration, line.metric) == ("right", "whole_pancreas_dsc")
    ]
    assert whole.difference == pytest.approx(0.9 - 0.805)
    assert list(whole.per_seed) == [0, 1]


def test_a_case_without_prediction_is_the_worst(tmp_path):
    trials, laboratory = list_trials({"a": []}, [0], []), Laboratory(tmp_path)
    write_metrics(laboratory.folder(trials[0]), 0.9, SUBTYPES, [[s] for s in SUBTYPES])
    path = laboratory.folder(trials[0]) / "evaluation" / "metrics.json"
    document = json.loads(path.read_text())
    failed = ("subtype_predicted", "subtype_probabilities", "conformal_set")
    document["cases"][0] |= dict.fromkeys(failed)
    path.write_text(json.dumps(document))
    lines = {one.metric: one.mean for one in summarise(read_outcomes(trials, laboratory))}
    assert lines["coverage"] == pytest.approx(23 / 24)
    assert lines["set_size"] == pytest.approx((23 + 3) / 24)
    assert lines["ece"] == pytest.approx((23 * 0.2 + 1) / 24)
    # the last of the eight of subtype 2, and before all eight of 0 and of 1
    assert lines["auroc"] == pytest.approx((7 / 8 + 2 * 15 / 16) / 3)


def test_networks_without_subtype_head_have_no_figures_of_subtypes(tmp_path):
    trials, laboratory = list_trials({"masks": [], "both": []}, [0], []), Laboratory(tmp_path)
    for trial in trials:
        write_metrics(laboratory.folder(trial), 0.9, SUBTYPES, [[s] for s in SUBTYPES])
    path = laboratory.folder(trials[0]) / "evaluation" / "metrics.json"
    document = json.loads(path.read_text())
    unanswered = ("subtype_predicted", "subtype_probabilities", "conformal_set")
    for case in document["cases"]:
        case |= dict.fromkeys(unanswered)
    path.write_text(json.dumps(document))
    lines = {
        (one.configuration, one.metric): one for one in summarise(read_outcomes(trials, laboratory))
    }
    told = {metric for configuration, metric in lines if configuration == "masks"}
    assert told == {"whole_pancreas_dsc", "lesion_dsc"}
    assert lines["both", "macro_f1"].mean == 1
    assert lines["both", "macro_f1"].difference is None
    assert lines["both", "lesion_dsc"].difference == 0


def test_students_interval():
    values = [0.5, 0.6, 0.8]
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert student_interval(values) == pytest.approx(tuple(expected))
    assert student_interval([0.5]) is None


def test_the_table_names_every_configuration_and_seed(outcomes, tmp_path):
    lines = summarise(outcomes, resamples=20)
    text = render_markdown(lines, outcomes, title="heads")
    assert "| one | 3 | **0.167** |" in text
    assert "0.800 0.810 0.820" in text
    assert "one 3, right 3" in text
    assert "| each seed | minus one |" in text
    assert "unfinished" not in text
    write_csv(lines, tmp_path / "heads.csv")
    with (tmp_path / "heads.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(lines)
    assert rows[0]["seeds"] == "3"


def test_different_revisions_of_the_code_are_told(tmp_path):
    trials, laboratory = list_trials({"a": [], "b": []}, [0], []), Laboratory(tmp_path)
    for trial, label in zip(trials, ("0af", "1be-dirty"), strict=True):
        write_metrics(laboratory.folder(trial), 0.9, SUBTYPES)
        run = laboratory.folder(trial) / "run"
        run.mkdir()
        (run / "run.json").write_text(json.dumps({"git": {"label": label}}))
    outcomes = read_outcomes(trials, laboratory)
    lines = summarise(outcomes, resamples=20)
    text = render_markdown(lines, outcomes, title="ab")
    assert "different revisions of the code: 0af (a/seed0); 1be-dirty (b/seed0)." in text
    assert "revision" not in render_markdown(lines, outcomes[:1], title="ab")


def test_no_finished_trial_gives_an_empty_table():
    assert summarise([]) == []
    assert "No trial is finished" in render_markdown([], [], title="heads")
