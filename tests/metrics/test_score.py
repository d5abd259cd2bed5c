from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from pancreas_mtl.errors import UsageError
from pancreas_mtl.metrics.score import selection_score

WEIGHTS = {"whole_pancreas_dsc": 0.25, "lesion_dsc": 0.25, "macro_f1": 0.5}
VALUES = {"whole_pancreas_dsc": 0.8, "lesion_dsc": 0.4, "macro_f1": 0.6, "loss": 9.0}


def test_it_is_the_weighted_mean():
    assert selection_score(VALUES, WEIGHTS) == pytest.approx(0.2 + 0.1 + 0.3)
    doubled = {name: 2 * weight for name, weight in WEIGHTS.items()}
    assert selection_score(VALUES, doubled) == pytest.approx(0.6)


def test_missing_terms_are_left_out_of_the_mean():
    masks_only = {"whole_pancreas_dsc": 0.8, "lesion_dsc": 0.4}
    assert selection_score(masks_only, WEIGHTS) == pytest.approx(0.6)
    assert selection_score({}, WEIGHTS) == 0


@pytest.mark.parametrize(
    ("weights", "match"),
    [
        ({"macro_f2": 1.0}, r"task\.score\.macro_f2=1\.0.*macro_f1"),
        ({"macro_f1": -1.0}, r"task\.score\.macro_f1=-1\.0: give weights >= 0"),
        ({"macro_f1": 0.0}, "at least one weight must be above 0"),
        ({}, "at least one weight must be above 0"),
    ],
)
def test_bad_weights_are_refused(weights, match):
    with pytest.raises(UsageError, match=match):
        selection_score(VALUES, weights)


def test_the_weights_of_the_task_are_accepted():
    task = yaml.safe_load(
        (Path(__file__).parents[2] / "conf" / "task" / "pancreas.yaml").read_text()
    )
    perfect = dict.fromkeys(task["score"], 1.0)
    assert selection_score(perfect, task["score"]) == pytest.approx(1)
