from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from pancreas_mtl.errors import UsageError
from pancreas_mtl.evaluation.task import Task

REPOSITORY = Path(__file__).resolve().parents[2]
TASK = Task(**yaml.safe_load((REPOSITORY / "conf" / "task" / "pancreas.yaml").read_text()))


def test_the_targets_are_those_of_the_task():
    assert TASK.targets == {"whole_pancreas_dsc": 0.91, "lesion_dsc": 0.31, "macro_f1": 0.70}
    assert (TASK.nsd_tolerance_mm, TASK.coverage) == (1.0, 0.9)


@pytest.mark.parametrize(
    ("key", "value", "demand"),
    [
        ("targets", {"dice": 0.9}, "of whole_pancreas_dsc"),
        ("nsd_tolerance_mm", -1.0, "at least 0"),
        ("lesion_hit_iou", 0.0, "above 0"),
        ("lesion_size_limits_ml", (5.0, 2.0), "in rising order"),
        ("lesion_size_limits_ml", (), "at least one"),
        ("coverage", 1.0, "between 0 and 1"),
        ("bootstrap_resamples", 0, "at least 1"),
    ],
)
def test_a_value_that_cannot_be_meant_is_refused(key, value, demand):
    with pytest.raises(UsageError, match=rf"task\.{key}=.*{demand}"):
        replace(TASK, **{key: value})
