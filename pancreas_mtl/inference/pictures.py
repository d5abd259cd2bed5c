"""Pictures of one case: slices through its lesion in three planes, with outlined regions.

Colour tells the region (amber: whole pancreas; red: lesion), the line tells the source (solid: the
prediction; dashed: the reference). Every panel has the same millimetres per pixel; the patient's
right is on the viewer's left, and the head is up.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from pancreas_mtl.data.files import atomic_path
from pancreas_mtl.inference.maps import PREVIEWS
from pancreas_mtl.types import (
    CasePrediction,
    FloatArray,
    Label,
    LabelArray,
    Triple,
    TripleMm,
    Volume,
)

WINDOW_HU = (-160.0, 240.0)  # the usual soft-tissue window: level 40, width 400
MARGIN_MM = 25.0
OUTLINES = ((Label.PANCREAS, "#ffb000"), (Label.LESION, "#ff4d6d"))
BACKGROUND, TEXT = "#0b0d10", "#e8eaed"
WIDTH_IN, GAP_IN, DPI = 8.0, 0.05, 120


Box = tuple[slice, slice, slice]


class Plane(NamedTuple):
    """One slice with its labels; `rises` where row 0 is the lowest."""

    image_hu: FloatArray
    labels: LabelArray
    reference: LabelArray | None
    size_mm: tuple[float, float]  # height, width
    rises: bool


def mosaic(
    image_hu: FloatArray,
    labels: LabelArray,
    spacing_mm: TripleMm,
    *,
    reference: LabelArray | None = None,
    title: str = "",
) -> Figure:
    """Draw the axial, coronal and sagittal slice through the lesion's centre.

    Args:
        image_hu: `(D, H, W)`.
        labels: the prediction, `(D, H, W)`; may be empty.
        spacing_mm: `(D, H, W)`.
        reference: the labels to compare with, `(D, H, W)`; its lesion then decides the slices.
        title: printed above the panels, for instance the case's name and subtype.

    Returns:
        A figure without a window; without any label it shows the middle of the image.
    """
    planes = _planes(image_hu, labels, reference, spacing_mm)
    figure, panels = _canvas([plane.size_mm for plane in planes], title)
    for axes, plane in zip(panels, planes, strict=True):
        _draw(axes, plane)
    _letters(panels)
    _legend(figure, with_reference=reference is not None)
    return figure


def write_preview(output_dir: Path, name: str, volume: Volume, prediction: CasePrediction) -> None:
    """Draw a case as it is predicted: `previews/<name>.png`, with the subtype's probabilities.

    Raises:
        CaseError: the disk is full, or the folder cannot be written to.
    """
    title, probabilities = name, prediction.subtype_probabilities
    if probabilities is not None:
        shares = "  ".join(f"p{subtype} {p:.2f}" for subtype, p in enumerate(probabilities))
        title = f"{name}   subtype {probabilities.argmax()}   {shares}"
    if prediction.conformal_set is not None:
        title += f"   set {'|'.join(map(str, prediction.conformal_set))}"
    (output_dir / PREVIEWS).mkdir(exist_ok=True)
    figure = mosaic(volume.array, prediction.labels, volume.spacing_mm, title=title)
    save_png(figure, output_dir / PREVIEWS / f"{name}.png")


def save_png(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, all at once or not at all.

    Raises:
        CaseError: the disk is full, or the folder cannot be written to.
    """
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=DPI)


def centre(masks: list[LabelArray]) -> Triple:
    """The voxel `(d, h, w)` to show: that of the lesion nearest to the lesion's centroid.

    The first mask with a lesion decides; without one, the first with a pancreas; without that, the
    middle of the image. So the voxel lies inside what it stands for, however that is bent.
    """
    for label in (Label.LESION, Label.PANCREAS):
        for mask in masks:
            at = np.argwhere(mask == label)
            if len(at):
                d, h, w = at[((at - at.mean(axis=0)) ** 2).sum(axis=1).argmin()].tolist()
                return d, h, w
    d, h, w = (size // 2 for size in masks[0].shape)
    return d, h, w


def neighbourhood(
    masks: list[LabelArray], spacing_mm: TripleMm, *, margin_mm: float = MARGIN_MM
) -> Box:
    """The box around everything labelled in any mask, plus a margin; all, where nothing is."""
    labelled = np.logical_or.reduce([mask > 0 for mask in masks])
    if not labelled.any():
        depth, height, width = labelled.shape
        return slice(0, depth), slice(0, height), slice(0, width)
    box = []
    for axis, (size, mm) in enumerate(zip(labelled.shape, spacing_mm, strict=True)):
        others = tuple(other for other in range(3) if other != axis)
        found = np.flatnonzero(labelled.any(axis=others))
        margin = math.ceil(margin_mm / mm)
        box.append(slice(max(0, int(found[0]) - margin), min(size, int(found[-1]) + 1 + margin)))
    return box[0], box[1], box[2]


def _planes(
    image_hu: FloatArray,
    labels: LabelArray,
    reference: LabelArray | None,
    spacing_mm: TripleMm,
) -> list[Plane]:
    """The axial, coronal and sagittal slice through the centre, cropped to the neighbourhood."""
    both = [labels] if reference is None else [reference, labels]
    box = neighbourhood(both, spacing_mm)
    d, h, w = (at - cut.start for at, cut in zip(centre(both), box, strict=True))
    sizes = zip(box, spacing_mm, strict=True)
    depth, height, width = ((cut.stop - cut.start) * mm for cut, mm in sizes)

    def plane(where: Any, size_mm: tuple[float, float], *, rises: bool) -> Plane:
        dashed = None if reference is None else reference[box][where]
        return Plane(image_hu[box][where], labels[box][where], dashed, size_mm, rises)

    return [
        plane(np.s_[d], (height, width), rises=False),
        plane(np.s_[:, h], (depth, width), rises=True),
        plane(np.s_[:, :, w], (depth, height), rises=True),
    ]


def _draw(axes: Axes, plane: Plane) -> None:
    height, width = plane.size_mm
    view: dict[str, Any] = {
        "extent": (0.0, width, 0.0, height) if plane.rises else (0.0, width, height, 0.0),
        "origin": "lower" if plane.rises else "upper",
    }
    low, high = WINDOW_HU
    axes.imshow(plane.image_hu, cmap="gray", vmin=low, vmax=high, **view)
    if plane.reference is not None:
        _outline(axes, plane.reference, view, linestyles="dashed")
    _outline(axes, plane.labels, view, linestyles="solid")


def _canvas(sizes_mm: list[tuple[float, float]], title: str) -> tuple[Figure, list[Axes]]:
    """A dark figure with one panel per size (height, width), all at one scale."""
    inch_per_mm = (WIDTH_IN - 2 * GAP_IN) / sum(width for _, width in sizes_mm)
    top, bottom = (0.36 if title else 0.08), 0.32
    tallest = max(height for height, _ in sizes_mm) * inch_per_mm
    height_in = tallest + top + bottom
    figure = Figure(figsize=(WIDTH_IN, height_in), dpi=DPI, facecolor=BACKGROUND)
    panels, left = [], 0.0
    for height, width in sizes_mm:
        panel_in = height * inch_per_mm
        low = (bottom + (tallest - panel_in) / 2) / height_in
        box = (left, low, width * inch_per_mm / WIDTH_IN, panel_in / height_in)
        axes = figure.add_axes(box)
        axes.set_axis_off()
        panels.append(axes)
        left += box[2] + GAP_IN / WIDTH_IN
    if title:  # `parse_math=False`: a case may be called $x$
        style: dict[str, Any] = {
            "color": TEXT,
            "fontsize": 11,
            "ha": "left",
            "va": "top",
            "parse_math": False,
        }
        figure.text(0.01, 1 - 0.08 / height_in, title, **style)
    return figure, panels


def _outline(
    axes: Axes, labels: npt.NDArray[np.uint8], view: dict[str, Any], *, linestyles: str
) -> None:
    """Outline what is at least a label; no line runs along the edge of the picture."""
    for label, colour in OUTLINES:
        region = labels >= label
        if region.any() and not region.all() and min(region.shape) > 1:
            style: dict[str, Any] = {
                "colors": [colour],
                "linewidths": 1.0,
                "linestyles": linestyles,
            }
            axes.contour(region.astype(np.float32), levels=[0.5], **view, **style)


def _letters(panels: list[Axes]) -> None:
    """Mark which side is which."""
    for axes, (left, top) in zip(panels, (("R", "A"), ("R", "S"), ("A", "S")), strict=True):
        style: dict[str, Any] = {
            "transform": axes.transAxes,
            "color": TEXT,
            "fontsize": 8.5,
            "alpha": 0.8,
        }
        axes.text(0.015, 0.5, left, va="center", **style)
        axes.text(0.5, 0.985, top, va="top", ha="center", **style)


def _legend(figure: Figure, *, with_reference: bool) -> None:
    names = {Label.PANCREAS: "whole pancreas", Label.LESION: "lesion"}
    lines = [Line2D([], [], color=colour, label=names[label]) for label, colour in OUTLINES]
    if with_reference:
        lines.append(Line2D([], [], color=TEXT, label="prediction"))
        lines.append(Line2D([], [], color=TEXT, linestyle="dashed", label="reference"))
    style: dict[str, Any] = {
        "loc": "lower center",
        "frameon": False,
        "fontsize": 8.5,
        "labelcolor": TEXT,
    }
    figure.legend(handles=lines, ncols=len(lines), borderpad=0.1, **style)
