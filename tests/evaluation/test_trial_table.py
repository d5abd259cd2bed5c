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
        Trial("a", 0, ()), values, values, zeros, zeros, np.ones((400, 3)) / 3, values, values, 1.0
    )
    (line,) = [one for one in summarise([outcome]) if one.metric == "lesion_dsc"]
    low, high = line.ci95_cases
    assert high - low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.08)


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
    assert "unfinished" not in text
    write_csv(lines, tmp_path / "heads.csv")
    with (tmp_path / "heads.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(lines)
    assert rows[0]["seeds"] == "3"


def test_no_finished_trial_gives_an_empty_table():
    assert summarise([]) == []
    assert "No trial is finished" in render_markdown([], [], title="heads")
