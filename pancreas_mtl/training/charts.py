"""Charts of a training run as figures: confusion matrix, reliability diagram, curves."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pancreas_mtl.metrics.subtype import (
    CALIBRATION_BINS,
    IntArray,
    Probabilities,
    confusion_matrix,
    ece,
    reliability,
)
from pancreas_mtl.types import NUM_SUBTYPES, UNKNOWN

BLUE, GREY = "#2567ab", "#8a8578"
SIDE_IN, PANEL_IN, COLUMNS = 4.0, (3.2, 2.0), 4
CURVES = ("train/", "lr/", "val/")  # the groups of metrics.csv, in this order


def confusion_chart(references: IntArray, predictions: IntArray) -> Figure:
    """Counts of cases by reference (row) and predicted subtype, shaded by the share of the row.

    Args:
        references: subtypes `(N,)`.
        predictions: subtypes `(N,)`, UNKNOWN for a case without prediction; these get a column of
            their own where there are any.
    """
    counts = confusion_matrix(references, predictions)  # (S, S + 1)
    names = [str(subtype) for subtype in range(NUM_SUBTYPES)]
    columns = [*names, "none"] if (predictions == UNKNOWN).any() else names
    counts = counts[:, : len(columns)]
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    figure, axes = _square(f"Confusion matrix, {len(references)} cases")
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for (row, column), count in np.ndenumerate(counts):
        colour = "white" if shares[row, column] > 0.5 else "black"
        axes.text(column, row, f"{count:.0f}", color=colour, ha="center", va="center", fontsize=13)
    axes.set(xlabel="predicted subtype", ylabel="reference subtype")
    axes.set_xticks(range(len(columns)), columns)
    axes.set_yticks(range(NUM_SUBTYPES), names)
    return figure


def reliability_chart(references: IntArray, probabilities: Probabilities) -> Figure:
    """How often the predicted subtype is right against how sure the model is of it.

    Args:
        references: subtypes `(N,)`, N > 0.
        probabilities: `(N, S)`.
    """
    bins = reliability(references, probabilities)
    error = ece(references, probabilities)
    figure, axes = _square(f"Reliability, {len(references)} cases, ECE {error:.3f}")
    axes.plot([0, 1], [0, 1], color=GREY, linestyle="dashed", linewidth=1, label="calibrated")
    centres = [(_bin_number(one.confidence) + 0.5) / CALIBRATION_BINS for one in bins]
    accuracies = [one.accuracy for one in bins]
    axes.bar(centres, accuracies, width=0.9 / CALIBRATION_BINS, color=BLUE, alpha=0.75)
    for centre, one in zip(centres, bins, strict=True):
        height = min(one.accuracy + 0.02, 0.94)
        axes.text(centre, height, f"{one.n_cases}", ha="center", fontsize=8)
    axes.scatter([one.confidence for one in bins], accuracies, color="black", s=12, zorder=3)
    axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="highest probability", ylabel="share that is right")
    return figure


def _bin_number(confidence: float) -> int:
    """The bin of `reliability` that holds this mean confidence; bins are closed on the right."""
    return min(max(int(np.ceil(confidence * CALIBRATION_BINS - 1e-9)) - 1, 0), CALIBRATION_BINS - 1)


def curves(metrics_csv: Path) -> Figure:
    """Every column of `metrics.csv` as a curve over the epochs, one small panel each."""
    with metrics_csv.open(newline="") as file:
        rows = list(csv.DictReader(file))
    names = [name for group in CURVES for name in rows[0] if name.startswith(group)]
    names = [name for name in names if not name.endswith("_epoch")]
    height, width = -(-len(names) // COLUMNS), min(len(names), COLUMNS)
    size = (PANEL_IN[0] * width, PANEL_IN[1] * height)
    figure = Figure(figsize=size, layout="constrained")
    panels: Any = figure.subplots(height, width, squeeze=False)
    for axes, name in zip(panels.flat, names, strict=False):
        points = [(float(row["epoch"]), float(row[name])) for row in rows if row[name]]
        marker = "o" if len(points) < 20 else None
        axes.plot(
            *zip(*points, strict=True), color=BLUE, linewidth=1.2, marker=marker, markersize=3
        )
        axes.set_title(name, fontsize=9, loc="left")
        axes.xaxis.set_major_locator(ticker.MaxNLocator(integer=True))
        _plain(axes)
    for axes in panels.flat[len(names) :]:
        axes.set_axis_off()
    return figure


def _square(title: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(SIDE_IN, SIDE_IN), layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(title, fontsize=10, loc="left")
    _plain(axes)
    return figure, axes


def _plain(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)
