import re
from pathlib import Path

import numpy as np
import pytest

from pancreas_mtl.evaluation.report import charts, score_charts, svg, tables
from pancreas_mtl.evaluation.report.about import describe
from pancreas_mtl.evaluation.report.runs import CaseFiles, Run, RunCase


def run(*entries, name="run", metrics=None, curves=None, files=None):
    cases = tuple(
        RunCase(f"case{i}", f"case-0-{i}", entry, files or CaseFiles(), None, {"network": i + 1.0})
        for i, entry in enumerate(entries)
    )
    content = {**(metrics or {}), "cases": list(entries)} if metrics is not None else None
    return Run(name, Path(name), content, cases, curves or {}, {}, ())


def entry(dsc, subtype, reference_ml=10.0, predicted_ml=12.0):
    return {
        "name": f"{dsc}",
        "lesion_dsc": dsc,
        "whole_pancreas_dsc": dsc,
        "subtype": subtype,
        "lesion_volume_ml": predicted_ml,
        "lesion_reference_volume_ml": reference_ml,
    }


def test_dots_leave_out_what_is_not_defined():
    one = run(entry(0.5, 0), entry(None, 1))
    assert charts.dots(one, charts.score("subtype"), charts.score("lesion_dsc")).y == [0.5]


def test_dsc_is_grouped_by_subtype_with_its_median():
    chart = score_charts.dsc_by_subtype([run(entry(0.2, 0), entry(0.4, 0), entry(0.9, 2))])
    rows = [row for row in chart.table.rows if row[1] == "lesion"]
    assert [row[2:] for row in rows] == [
        (0, 2, pytest.approx(0.3), 0.2, 0.4),
        (2, 1, 0.9, 0.9, 0.9),
        ("all", 3, 0.4, 0.2, 0.9),
    ]
    assert chart.svg.count('href="#case-0-1"') == 4  # two regions, in its group and among all


def test_limits_of_agreement_are_those_of_bland_and_altman():
    differences = [1.0, 2.0, 6.0]
    one = run(*(entry(0.5, 0, 10, 10 + d) for d in differences))
    (row,) = score_charts.volume_agreement([one]).table.rows
    spread = 1.96 * np.std(differences, ddof=1)
    assert row == ("run", "lesion", 3, 3.0, pytest.approx(3 - spread), pytest.approx(3 + spread))


def test_lesions_are_grouped_in_three_by_size_and_empty_ones_have_no_place():
    sizes = [0.0, 1, 2, 3, 4, 5, 6]
    one = run(*(entry(size / 10, 0, size) for size in sizes))
    rows = score_charts.dsc_by_size([one]).table.rows
    assert [row[1:4] for row in rows] == [(1, 2, 2), (3, 4, 2), (5, 6, 2)]
    assert [row[4] for row in rows] == pytest.approx([0.15, 0.35, 0.55])


def test_reliability_and_froc_show_the_bins_and_points_of_the_metrics():
    bins = [{"n_cases": 4, "confidence": 0.5, "accuracy": 0.25}]
    froc = {
        "thresholds": [0.9, 0.5],
        "false_positives_per_case": [0.0, 0.5],
        "sensitivity": [0.4, 0.8],
        "mean_sensitivity": 0.6,
    }
    metrics = {"subtype": {"reliability": bins}, "lesion_detection": {"froc": froc}}
    one = run(metrics=metrics)
    assert score_charts.reliability([one]).table.rows == [("run", 4, 0.5, 0.25)]
    rows = score_charts.froc([one]).table.rows
    assert rows == [("run", 0.9, 0.0, 0.4), ("run", 0.5, 0.5, 0.8)]


def test_charts_without_their_data_are_left_out():
    empty = [run(), run(metrics={}, name="other")]
    makers = (
        score_charts.dsc_by_subtype,
        score_charts.dsc_by_size,
        score_charts.volume_agreement,
        score_charts.reliability,
        score_charts.froc,
        charts.seconds_per_stage,
    )
    assert [make(empty) for make in makers] == [None] * len(makers)
    assert list(charts.training_curves(empty)) == []


def test_seconds_are_averaged_over_the_cases():
    chart = charts.seconds_per_stage([run({}, {}, {})])
    assert chart.table.rows == [("run", "network", 2.0, 3.0)]


def test_curves_of_two_runs_share_a_panel_and_a_table():
    one = run(curves={"train/loss": [(0, 2.0), (1, 1.0)], "val/score": [(1, 0.5)]})
    two = run(name="two", curves={"train/loss": [(0, 3.0)], "train/skipped": [(0, 0.0)]})
    training, validation = charts.training_curves([one, two])
    assert training.table.header == ("epoch", "run: train/loss", "two: train/loss")
    assert training.table.rows == [[0, 2.0, 3.0], [1, 1.0, None]]
    assert validation.table.rows == [[1, 0.5]]


def test_a_column_is_shown_once_though_logged_twice():
    curves = {"train/loss": [(0, 1.0)], "train/loss_epoch": [(0, 1.0)], "train/x_epoch": [(0, 1.0)]}
    assert charts.curve_columns([run(curves=curves)], "train") == ["train/loss", "train/x_epoch"]


def test_texts_in_charts_are_escaped_and_never_formulas():
    one = run(entry(0.5, 0), name="<b>&$x$")
    two = run(entry(0.5, 0), name="two")
    svg = score_charts.dsc_by_subtype([one, two]).svg
    assert "<b>" not in svg
    assert "&lt;b&gt;&amp;$x$" in svg


@pytest.mark.parametrize(
    "name", ["a", "conservative", "conservative_scores", "seg_focused/fold0-seed0"]
)
def test_a_legend_of_five_runs_is_no_wider_than_its_chart(name):
    with svg.style():
        figure, (axes,) = svg.new_figure()
        for number in range(5):
            axes.plot([0, 1], [0, 1], label=f"{name}{number}")
        svg.legend_below(figure, axes)
        figure.draw_without_rendering()
    assert figure.legends[0].get_window_extent().width <= figure.bbox.width


def test_words_are_what_a_reader_says():
    assert charts.plain_words("whole_pancreas_dsc") == "whole pancreas DSC"
    assert charts.plain_words("lesion_hd95_mm") == "lesion HD95 (mm)"
    assert charts.plain_words("n_found") == "lesions found"


def test_a_number_says_where_it_comes_from():
    one = run(metrics={"lesion": {"dsc": {"mean": 0.123456, "ci95": [0.1, 0.2]}, "ece": None}})
    assert str(tables.datum(one, "lesion.dsc.mean")) == (
        '<data value="0.123456" data-run="run" data-path="lesion.dsc.mean">0.123</data>'
    )
    assert "not defined" in tables.datum(one, "lesion.ece")
    text = re.sub("<[^>]+>", "", tables.estimate(one, "lesion.dsc", 2))
    assert text == "0.12 0.10 to 0.20"


def test_optimism_grows_with_the_number_of_runs():
    metrics = {"subtype": {"macro_f1": {"mean": 0.6, "ci95": [0.6 - 1.96 * 0.1, 0.6 + 1.96 * 0.1]}}}
    runs = [run(metrics=metrics, name=str(i)) for i in range(10)]
    two, ten = (tables.optimism(runs[:n], "subtype.macro_f1") for n in (2, 10))
    assert two == pytest.approx(0.1 / np.sqrt(np.pi))  # the mean of the larger of two normals
    assert ten == pytest.approx(0.154, abs=1e-3)
    assert tables.optimism(runs[:1], "subtype.macro_f1") is None


def test_only_runs_on_the_same_cases_are_comparable():
    first, second = (run(entry(0.5, 0), entry(0.6, 1), metrics={}, name=name) for name in "ab")
    third = run(entry(0.5, 0), metrics={}, name="c")
    assert tables.comparable([first, third, second]) == [first, second]
    assert tables.comparable([first, third]) == []


def test_a_target_without_value_is_not_measured():
    target = {"name": "macro_f1", "target": 0.7, "value": None, "ci95": None, "met": None}
    (found,) = tables.targets([run(metrics={"targets": [target]})])
    assert (found.rows[0].verdict, found.scale) == ("not measured", 1.0)


def test_validation_cases_come_with_a_warning():
    files = CaseFiles(prediction=Path("run/validation/case0.nii.gz"))
    trained = run(entry(0.5, 0), metrics={}, files=files, curves={"train/loss": [(0, 1.0)]})
    assert "1 validation case, scored against references." in describe(trained)
    assert "also chose the checkpoint" in describe(trained)
