from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml

from pancreas_mtl.errors import UsageError
from pancreas_mtl.evaluation.compare import compare, compare_rows, read_cases, write_comparisons
from pancreas_mtl.evaluation.results import CaseResult, Metrics
from pancreas_mtl.evaluation.scoring import REGIONS, MaskScores
from pancreas_mtl.evaluation.table import render_comparison
from pancreas_mtl.evaluation.task import Task
from pancreas_mtl.metrics.lesions import LesionCounts
from pancreas_mtl.metrics.segmentation import RegionScores

REPOSITORY = Path(__file__).resolve().parents[2]
TASK = Task(**yaml.safe_load((REPOSITORY / "conf" / "task" / "pancreas.yaml").read_text()))
TASK = replace(TASK, bootstrap_resamples=500)


class OnlyCases(Metrics):
    """What a comparison needs of an evaluation."""

    def __init__(self, cases):
        object.__setattr__(self, "cases", cases)


def run(dsc, answers):
    """An evaluation of cases with these DSC in every region, and these subtypes."""
    cases = []
    for number, (value, answer) in enumerate(zip(dsc, answers, strict=True)):
        scores = RegionScores(value, value / 2, 1.0, 1.0, 5.0, 5.0, 0.0, 0.0)
        masks = MaskScores(dict.fromkeys(REGIONS, scores), LesionCounts(1, 1, 1))
        cases.append(CaseResult(f"case{number}", False, masks, number % 3, answer, None, None))
    return OnlyCases(cases)


def rows(metrics):
    return [case.as_json() for case in metrics.cases]


DSC = np.linspace(0.5, 0.9, 12).tolist()
RIGHT = [number % 3 for number in range(12)]


def test_a_run_that_is_better_in_every_case():
    better = run(DSC, RIGHT)
    worse = run([value - 0.1 for value in DSC], [0] * 12)
    found = {one.metric: one for one in compare(better, rows(worse), task=TASK)}
    assert list(found) == [
        "whole_pancreas_dsc",
        "whole_pancreas_nsd",
        "lesion_dsc",
        "lesion_nsd",
        "macro_f1",
    ]
    assert found["lesion_dsc"].paired.difference == pytest.approx(0.1)
    assert found["lesion_dsc"].p_corrected < 0.05
    assert found["lesion_nsd"].paired.difference == pytest.approx(0.05)
    assert found["macro_f1"].value == 1
    assert found["macro_f1"].other == pytest.approx(1 / 6)
    assert found["macro_f1"].n_cases == 12


def test_a_run_against_itself():
    same = run(DSC, RIGHT)
    for one in compare(same, rows(same), task=TASK):
        assert one.paired.difference == 0
        assert one.p_corrected == 1
        assert one.optimism == 0


def test_p_values_are_corrected_for_their_number():
    rng = np.random.default_rng(0)
    other = run([value + rng.normal(0.01, 0.03) for value in DSC], RIGHT)
    found = compare(run(DSC, RIGHT), rows(other), task=TASK)
    assert all(one.p_corrected >= one.paired.p_value for one in found)
    least = min(found, key=lambda one: one.paired.p_value)
    assert least.p_corrected == pytest.approx(min(1, 5 * least.paired.p_value))


def test_cases_are_paired_by_name_whatever_their_order():
    backwards = rows(run(DSC, RIGHT))[::-1]
    found = compare(run(DSC, RIGHT), backwards, task=TASK)
    assert [one.paired.difference for one in found[:4]] == [0] * 4
    fewer = compare(run(DSC, RIGHT), backwards[:5], task=TASK)
    assert {one.n_cases for one in fewer} == {5}


@pytest.mark.parametrize(
    "change", [{"subtype": 2}, {"lesion_reference_volume_ml": 5.1}], ids=["subtype", "volume"]
)
def test_cases_of_one_name_but_other_references_are_not_compared(change):
    others = rows(run(DSC, RIGHT))
    others[3] |= change
    with pytest.raises(UsageError, match="case3 has another reference there"):
        compare(run(DSC, RIGHT), others, task=TASK)
    assert {one.n_cases for one in compare_rows(rows(run(DSC, RIGHT)), others)} == {11}


def test_a_metric_that_one_run_lacks_is_left_out():
    found = compare(run(DSC, RIGHT), rows(run(DSC, [None] * 12)), task=TASK)
    assert "macro_f1" not in {one.metric for one in found}
    assert len(found) == 4


def test_a_case_without_answer_is_wrong():
    found = compare(run(DSC, RIGHT), rows(run(DSC, [None, *RIGHT[1:]])), task=TASK)[-1]
    assert found.metric == "macro_f1"
    assert found.other == pytest.approx((6 / 7 + 2) / 3)


def test_the_table_and_the_file_hold_what_was_found(tmp_path):
    found = compare(run(DSC, RIGHT), rows(run(DSC[::-1], [0] * 12)), task=TASK)
    text = render_comparison(found, Path("[other]/metrics.json"))
    assert "subtype macro-F1" in text
    assert "+0.833" in text
    assert "[other]/metrics.json" in text
    assert f"{found[0].optimism:.3f}" in text
    write_comparisons(found, tmp_path / "comparison.json")
    written = json.loads((tmp_path / "comparison.json").read_text())
    assert [one["metric"] for one in written] == [one.metric for one in found]
    assert written[-1]["paired"]["p_value"] == found[-1].paired.p_value


def test_cases_are_read_from_a_file_or_its_folder(tmp_path):
    document = {"schema": 1, "cases": rows(run(DSC, RIGHT)), "lesion": {"nsd_tolerance_mm": 1.0}}
    (tmp_path / "metrics.json").write_text(json.dumps(document))
    for path in (tmp_path, tmp_path / "metrics.json"):
        found = read_cases(path, {"case3", "case5"}, task=TASK)
        assert [row["name"] for row in found] == ["case3", "case5"]
    with pytest.raises(UsageError, match="shares no case with the references: choose another run"):
        read_cases(tmp_path, {"other"}, task=TASK)
    other = replace(TASK, nsd_tolerance_mm=0.25)
    with pytest.raises(UsageError, match=r"a tolerance of 1 mm, here it is 0\.25: give task\.nsd_"):
        read_cases(tmp_path, {"case3"}, task=other)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"schema": 2, "cases": []}'])
def test_other_documents_are_refused(tmp_path, text):
    (tmp_path / "metrics.json").write_text(text)
    with pytest.raises(UsageError, match=r"compare=.*no metrics\.json of this version"):
        read_cases(tmp_path, {"case0"}, task=TASK)
    with pytest.raises(UsageError, match=r"nowhere: no metrics\.json of this version"):
        read_cases(tmp_path / "nowhere", {"case0"}, task=TASK)
