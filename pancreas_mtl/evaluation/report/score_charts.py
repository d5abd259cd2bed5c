"""The charts of scores: DSC, volumes, lesion sizes, calibration of the subtype, detection."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import NullFormatter

from pancreas_mtl.evaluation.report.charts import (
    REGIONS,
    Chart,
    Dots,
    Table,
    Value,
    dots,
    draw_dots,
    score,
    tooltips,
)
from pancreas_mtl.evaluation.report.runs import Run, RunCase
from pancreas_mtl.evaluation.report.svg import (
    INK,
    MUTED,
    legend_below,
    new_figure,
    run_colour,
    style,
    to_svg,
)
from pancreas_mtl.types import NUM_SUBTYPES

SIZE_GROUPS = 3
STRIPS = (REGIONS[0], ("pancreas", "pancreas without lesion"), REGIONS[1])


def dsc_by_subtype(runs: Sequence[Run]) -> Chart | None:
    """Every case's DSC as a dot, grouped by the reference's subtype, with each group's median."""
    rows: list[tuple[Any, ...]] = []
    with style():
        figure, panels = new_figure(rows=len(STRIPS), height_in=5.2, sharex=True)
        for axes, (key, region) in zip(panels, STRIPS, strict=True):
            for number, run in enumerate(runs):
                rows += _draw_strips(axes, run, number, len(runs), key, region)
            axes.set_title(region)
            axes.set_xticks(range(NUM_SUBTYPES + 1), [*map(str, range(NUM_SUBTYPES)), "all"])
            axes.set_ylabel("DSC")
            axes.set_ylim(-0.03, 1.03)
        panels[-1].set_xlabel("subtype (reference)")
        legend_below(figure, panels[0])
    if not rows:
        return None
    alt = "DSC of every case. Medians: " + "; ".join(
        f"{name}, {region}, subtype {group}: {median:.3f}"
        for name, region, group, _, median, *_ in rows
    )
    header = ("run", "region", "subtype", "cases", "median", "lowest", "highest")
    caption = "A dot is a case (a click opens it), a line the median of its group."
    svg = to_svg(figure, alt=alt, titles=tooltips(runs))
    return Chart("dsc", "DSC by region and subtype", svg, caption, Table(header, rows))


def _draw_strips(
    axes: Axes, run: Run, number: int, runs: int, key: str, region: str
) -> Iterator[tuple[Any, ...]]:
    """Draw a run's strips of dots, one a subtype and one of all; yield the rows behind them."""
    noise = np.random.default_rng(number)
    width = 0.8 / runs
    for slot in range(NUM_SUBTYPES + 1):
        group = "all" if slot == NUM_SUBTYPES else slot
        left = slot - 0.4 + number * width
        in_group = [case for case in run.cases if group in ("all", case.scores.get("subtype"))]
        cases = [case for case in in_group if case.scores.get(f"{key}_dsc") is not None]
        if not cases:
            continue
        y = [float(case.scores[f"{key}_dsc"]) for case in cases]
        x = left + width * noise.uniform(0.15, 0.85, len(y))
        label = run.name if group == "all" else None
        draw_dots(axes, Dots(cases, x.tolist(), y), colour=run_colour(number), label=label)
        median = float(np.median(y))
        axes.hlines(median, left + 0.05 * width, left + 0.95 * width, color=INK, lw=1.5)
        yield run.name, region, group, len(y), median, min(y), max(y)


def reliability(runs: Sequence[Run]) -> Chart | None:
    """How often the predicted subtype is right, against how sure the model was."""
    bins = [
        (number, run.name, group["n_cases"], group["confidence"], group["accuracy"])
        for number, run in enumerate(runs)
        for group in run.value("subtype.reliability") or []
    ]
    if not bins:
        return None
    with style():
        figure, (axes,) = new_figure(height_in=3.6)
        axes.plot([0, 1], [0, 1], color=MUTED, lw=1, ls="dashed")
        for number, run in enumerate(runs):
            own = [group[2:] for group in bins if group[0] == number]
            if own:
                _, sure, right = zip(*own, strict=True)
                colour = run_colour(number)
                axes.plot(sure, right, color=colour, lw=1, marker="o", ms=5, label=run.name)
                for count, x, y in own:
                    axes.annotate(f"{count}", (x, y), (4, 4), textcoords="offset points", size=8)
        axes.set(xlim=(0, 1.02), ylim=(-0.02, 1.04), aspect="equal")
        axes.set_xlabel("mean probability of the predicted subtype")
        axes.set_ylabel("share that is right")
        legend_below(figure, axes)
    rows = [group[1:] for group in bins]
    alt = "Reliability of the subtype's probability. " + "; ".join(
        f"{name}: sure by {sure:.2f}, right in {right:.2f} of {count} cases"
        for name, count, sure, right in rows
    )
    header = ("run", "cases", "mean probability", "share right")
    caption = (
        "On the dashed line, a stated 70% is right 7 times in 10; below it, the model is too sure. "
        "Small numbers count the cases in each bin."
    )
    svg = to_svg(figure, alt=alt)
    return Chart("reliability", "Reliability", svg, caption, Table(header, rows))


def froc(runs: Sequence[Run]) -> Chart | None:
    """Lesions found against false alarms, as the threshold on a candidate's score falls."""
    curves = [
        (number, run, curve)
        for number, run in enumerate(runs)
        if (curve := run.value("lesion_detection.froc"))
    ]
    if not curves:
        return None
    with style():
        figure, (axes,) = new_figure()
        for number, run, curve in curves:
            x = [0.0, *curve["false_positives_per_case"]]
            y = [0.0, *curve["sensitivity"]]
            axes.step(x, y, where="post", color=run_colour(number), label=run.name)
        axes.set(xlim=(-0.02, None), ylim=(-0.02, 1.03))
        axes.set_xlabel("false positives a case")
        axes.set_ylabel("share of lesions found")
        legend_below(figure, axes)
    rows = [
        (run.name, *point)
        for _, run, curve in curves
        for point in zip(
            curve["thresholds"],
            curve["false_positives_per_case"],
            curve["sensitivity"],
            strict=True,
        )
    ]
    alt = "Free-response curve of lesion detection. " + "; ".join(
        f"{run.name}: mean sensitivity {curve['mean_sensitivity']:.3f}" for _, run, curve in curves
    )
    header = ("run", "threshold", "false positives a case", "share of lesions found")
    caption = "FROC: every point is a threshold on the score of the lesion candidates."
    svg = to_svg(figure, alt=alt)
    return Chart("froc", "Detection of lesions", svg, caption, Table(header, rows))


def volume_agreement(runs: Sequence[Run]) -> Chart | None:
    """Predicted against reference volumes, as Bland and Altman plot them.

    doi:10.1016/S0140-6736(86)90837-8
    """
    rows: list[tuple[str, str, int, float, float, float]] = []
    with style():
        figure, panels = new_figure(2)
        for axes, (key, region) in zip(panels, REGIONS, strict=True):
            for number, run in enumerate(runs):
                rows += _draw_agreement(axes, run, number, key, region)
            axes.set_title(region)
            axes.set_xlabel("mean of both (ml)")
        panels[0].set_ylabel("predicted - reference (ml)")
        legend_below(figure, panels[0])
    if not rows:
        return None
    alt = "Difference of predicted and reference volume. " + "; ".join(
        f"{name}, {region}: mean {bias:+.2f} ml, limits of agreement {low:.2f} to {high:.2f} ml"
        for name, region, _, bias, low, high in rows
    )
    header = ("run", "region", "cases", "mean difference (ml)", "lower limit", "upper limit")
    caption = (
        "Solid: the mean difference; dashed: 1.96 standard deviations about it, between which 95% "
        "of the differences lie if they are normally distributed."
    )
    svg = to_svg(figure, alt=alt, titles=tooltips(runs))
    return Chart("volume", "Volume agreement", svg, caption, Table(header, rows))


def _draw_agreement(
    axes: Axes, run: Run, number: int, key: str, region: str
) -> Iterator[tuple[str, str, int, float, float, float]]:
    """Draw a run's differences, their mean and limits of agreement; yield the row behind them."""
    points = dots(run, _volumes(key, lambda p, r: (p + r) / 2), _volumes(key, lambda p, r: p - r))
    if not points.cases:
        return
    draw_dots(axes, points, colour=run_colour(number), label=run.name)
    bias, spread = float(np.mean(points.y)), 1.96 * _std(points.y)
    for level, dashes in ((bias, "solid"), (bias - spread, "dashed"), (bias + spread, "dashed")):
        axes.axhline(level, color=run_colour(number), lw=1, ls=dashes)
    yield run.name, region, len(points.y), bias, bias - spread, bias + spread


def _volumes(region: str, combine: Callable[[float, float], float]) -> Value:
    """A function of a case's predicted and reference volume, in ml."""

    def value(case: RunCase) -> float | None:
        predicted = case.scores.get(f"{region}_volume_ml")
        reference = case.scores.get(f"{region}_reference_volume_ml")
        return None if predicted is None or reference is None else combine(predicted, reference)

    return value


def _std(values: Sequence[float]) -> float:
    """The standard deviation of a sample; 0 of a single value."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


def dsc_by_size(runs: Sequence[Run]) -> Chart | None:
    """Lesion DSC against the reference lesion's volume, on a logarithmic axis."""
    rows: list[tuple[str, float, float, int, float]] = []
    with style():
        figure, (axes,) = new_figure()
        for number, run in enumerate(runs):
            points = dots(run, _lesion_ml, score("lesion_dsc"))
            if points.cases:
                draw_dots(axes, points, colour=run_colour(number), label=run.name)
                rows += [(run.name, *group) for group in _by_size(points)]
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel("reference lesion (ml)")
        axes.set_ylabel("lesion DSC")
        axes.set_ylim(-0.03, 1.03)
        legend_below(figure, axes)
    if not rows:
        return None
    alt = "Lesion DSC against lesion size. " + "; ".join(
        f"{name}, {low:.2g} to {high:.2g} ml: median {median:.3f}"
        for name, low, high, _, median in rows
    )
    header = ("run", "from (ml)", "to (ml)", "cases", "median lesion DSC")
    caption = (
        "The same error at the border costs a small lesion more. The numbers group the cases in "
        "three by size."
    )
    svg = to_svg(figure, alt=alt, titles=tooltips(runs))
    return Chart("size", "DSC against lesion size", svg, caption, Table(header, rows))


def _lesion_ml(case: RunCase) -> float | None:
    """The reference lesion's volume; None without one, for it has no place on a log axis."""
    return case.scores.get("lesion_reference_volume_ml") or None


def _by_size(points: Dots) -> list[tuple[float, float, int, float]]:
    """Smallest and largest volume, count and median DSC of each third of the cases."""
    order = np.argsort(points.x, kind="stable")
    thirds = [part for part in np.array_split(order, SIZE_GROUPS) if len(part)]
    x, y = np.array(points.x), np.array(points.y)
    return [
        (float(x[part[0]]), float(x[part[-1]]), len(part), float(np.median(y[part])))
        for part in thirds
    ]
