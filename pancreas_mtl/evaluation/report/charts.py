"""The charts of a report: each takes the runs and gives a `Chart`, or None without its data.

Runs differ by colour in every chart. Marks that stand for a case link to it in the table.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes

from pancreas_mtl.evaluation.report.runs import Run, RunCase
from pancreas_mtl.evaluation.report.svg import (
    INK,
    legend_below,
    new_figure,
    run_colour,
    style,
    to_svg,
)

REGIONS = (("whole_pancreas", "whole pancreas"), ("lesion", "lesion"))
CURVE_GROUPS = (("train", "Training"), ("val", "Validation"), ("lr", "Learning rate"))
PHRASES = {
    "absolute_volume_error_ml": "volume error (ml)",
    "n_cases": "cases",
    "n_reference": "lesions in the references",
    "n_predicted": "lesions predicted",
    "n_found": "lesions found",
}
WORDS = {
    "assd": "ASSD",
    "auroc": "AUROC",
    "brier": "Brier",
    "dsc": "DSC",
    "ece": "ECE",
    "f1": "F1",
    "hd95": "HD95",
    "mcc": "MCC",
    "ml": "(ml)",
    "mm": "(mm)",
    "nsd": "NSD",
}


class Table(NamedTuple):
    """Numbers behind a chart: cells are numbers, texts or None."""

    header: Sequence[str]
    rows: Sequence[Sequence[Any]]


@dataclass(frozen=True)
class Chart:
    """One card of the page."""

    slug: str
    title: str
    svg: Markup
    caption: str
    table: Table


class Dots(NamedTuple):
    """Cases of one run with two values each."""

    cases: list[RunCase]
    x: list[float]
    y: list[float]


Value = Callable[[RunCase], float | None]


def score(key: str) -> Value:
    """A case's entry in `metrics.json`."""
    return lambda case: case.scores.get(key)


def dots(run: Run, x: Value, y: Value) -> Dots:
    """The cases of a run that have both values."""
    found = [(case, x(case), y(case)) for case in run.cases]
    return Dots(
        cases=[case for case, a, b in found if a is not None and b is not None],
        x=[float(a) for _, a, b in found if a is not None and b is not None],
        y=[float(b) for _, a, b in found if a is not None and b is not None],
    )


def draw_dots(axes: Axes, points: Dots, *, colour: str, label: str | None) -> None:
    """A dot for each case, which links to the case."""
    marks = axes.scatter(points.x, points.y, s=16, color=colour, alpha=0.75, lw=0, label=label)
    marks.set_urls([f"#{case.link}" for case in points.cases])


def tooltips(runs: Sequence[Run]) -> dict[str, str]:
    """What a dot says about its case, by its link."""
    texts = {}
    for run in runs:
        for case in run.cases:
            found = [(name, case.scores.get(f"{key}_dsc")) for key, name in REGIONS]
            parts = [f"{name} DSC {value:.3f}" for name, value in found if value is not None]
            texts[f"#{case.link}"] = ", ".join([case.name, *parts])
    return texts


def training_curves(runs: Sequence[Run]) -> Iterator[Chart]:
    """Yield one chart a group of columns of `metrics.csv`, with one panel a column."""
    for prefix, title in CURVE_GROUPS:
        columns = curve_columns(runs, prefix)
        if not columns:
            continue
        with style():
            rows = -(-len(columns) // 2)
            figure, panels = new_figure(2, rows=rows, height_in=0.5 + 1.4 * rows)
            for axes, column in zip(panels, columns, strict=False):
                _draw_curves(axes, runs, column)
            for axes in panels[len(columns) :]:
                axes.set_axis_off()
            legend_below(figure, panels[0])
        ends = [
            (run.name, column, run.curves[column][0][1], run.curves[column][-1][1])
            for run in runs
            for column in columns
            if column in run.curves
        ]
        alt = f"{title} by epoch. " + "; ".join(
            f"{name}: {column} from {first:.3g} to {last:.3g}" for name, column, first, last in ends
        )
        table = Table(
            ("epoch", *(f"{name}: {column}" for name, column, *_ in ends)), _epochs(runs, ends)
        )
        caption = "The columns of metrics.csv, one value an epoch; those that stay 0 are left out."
        yield Chart(f"curves-{prefix}", title, to_svg(figure, alt=alt), caption, table)


def curve_columns(runs: Sequence[Run], group: str) -> list[str]:
    """The columns of a group that are not 0 throughout; of a column and its `_epoch`, the first."""
    varied = {
        name
        for run in runs
        for name, points in run.curves.items()
        if name.startswith(f"{group}/") and any(value for _, value in points)
    }
    return sorted(name for name in varied if name.removesuffix("_epoch") not in varied - {name})


def _draw_curves(axes: Axes, runs: Sequence[Run], column: str) -> None:
    for number, run in enumerate(runs):
        if points := run.curves.get(column):
            epochs, values = zip(*points, strict=True)
            axes.plot(epochs, values, color=run_colour(number), label=run.name)
    axes.set_title(plain_words(column.partition("/")[2]))
    axes.set_xlabel("epoch")
    axes.margins(x=0.02)


def _epochs(runs: Sequence[Run], ends: Sequence[tuple[str, str, float, float]]) -> list[list[Any]]:
    """One row an epoch, one column a curve."""
    named = {run.name: run for run in runs}
    curves = [dict(named[name].curves[column]) for name, column, *_ in ends]
    epochs = sorted({epoch for curve in curves for epoch in curve})
    return [[int(epoch), *(curve.get(epoch) for curve in curves)] for epoch in epochs]


def seconds_per_stage(runs: Sequence[Run]) -> Chart | None:
    """The mean seconds a case spends in each stage of the prediction."""
    rows: list[tuple[str, str, float, float]] = []
    for run in runs:
        for stage in dict.fromkeys(stage for case in run.cases for stage in case.seconds):
            seconds = [case.seconds[stage] for case in run.cases if stage in case.seconds]
            rows.append((run.name, stage, float(np.mean(seconds)), float(np.max(seconds))))
    if not rows:
        return None
    timed = list(dict.fromkeys(name for name, *_ in rows))
    stages = list(dict.fromkeys(stage for _, stage, *_ in rows))
    height = 0.8 / len(timed)
    with style():
        figure, (axes,) = new_figure(height_in=1.0 + 0.25 * len(stages) * max(1.4, len(timed)))
        for number, run in enumerate(runs):
            own = [(stages.index(stage), mean) for name, stage, mean, _ in rows if name == run.name]
            if own:
                shift = (timed.index(run.name) - (len(timed) - 1) / 2) * height
                at = [position + shift for position, _ in own]
                means = [mean for _, mean in own]
                colour = run_colour(number)
                bars = axes.barh(at, means, height * 0.85, color=colour, label=run.name)
                axes.bar_label(bars, fmt="%.2f", padding=3, fontsize=8, color=INK)
        axes.set_yticks(range(len(stages)), [plain_words(stage) for stage in stages])
        axes.invert_yaxis()
        axes.grid(visible=False, axis="y")
        axes.set_xlabel("mean seconds a case")
        axes.margins(x=0.15)
        legend_below(figure, axes)
    alt = "Mean seconds a case: " + "; ".join(
        f"{name}, {stage}: {mean:.2f}" for name, stage, mean, _ in rows
    )
    header = ("run", "stage", "mean (s)", "longest (s)")
    caption = "As run.json has it. Stages of different cases may run at the same time."
    return Chart(
        "seconds", "Seconds per stage", to_svg(figure, alt=alt), caption, Table(header, rows)
    )


def plain_words(key: str) -> str:
    """`whole_pancreas_dsc` as a reader says it: `whole pancreas DSC`."""
    if key in PHRASES:
        return PHRASES[key]
    return " ".join(WORDS.get(word, word) for word in key.split("_"))
