"""From scores at the plan's spacing to labels in the source's spacing, and the clean-up."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from pancreas_mtl.data.resample import apply_matrix, interpolation_matrix
from pancreas_mtl.types import FloatArray, Label, LabelArray, Triple

SLAB = 16  # slices of the source's grid that are held as floats at once


class Scores(Protocol):
    """Scores `(C, d, h, w)` of one model: logits of a single one, probabilities of several."""

    shape: tuple[int, ...]

    def planes(self, low: int, high: int) -> FloatArray:
        """Those of the planes `low` to `high` along d; `low` never goes back."""


def labels_at(scores: Sequence[Scores], shape: Triple, *, orders: Sequence[Triple]) -> LabelArray:
    """Interpolate scores to the source's grid and take the label with the largest sum.

    Goes slab by slab from the first slice on, so that the scores never exist as a whole.

    Args:
        scores: one per model.
        shape: `(D, H, W)` of the source.
        orders: spline order per axis and model, 0 or 1.
    """
    labels = np.empty(shape, dtype=np.uint8)
    for start in range(0, shape[0], SLAB):
        stop = min(start + SLAB, shape[0])
        total: FloatArray | None = None
        for one, order in zip(scores, orders, strict=True):
            slab = _interpolate_slab(one, shape, order, start, stop)
            total = slab if total is None else total + slab
        assert total is not None
        labels[start:stop] = total.argmax(axis=0)
    return labels


def _interpolate_slab(
    scores: Scores, shape: Triple, orders: Triple, start: int, stop: int
) -> FloatArray:
    rows = interpolation_matrix(scores.shape[1], shape[0], orders[0])[start:stop]
    used = np.flatnonzero(rows.any(axis=0))
    low, high = int(used[0]), int(used[-1]) + 1
    planes = np.ascontiguousarray(scores.planes(low, high))
    slab = apply_matrix(np.ascontiguousarray(rows[:, low:high]), planes, axis=1)
    for axis in (2, 3):
        matrix = interpolation_matrix(scores.shape[axis], shape[axis - 1], orders[axis - 1])
        slab = apply_matrix(matrix, slab, axis=axis)
    return slab


def clean_up(labels: LabelArray, *, largest_pancreas: bool, largest_lesion: bool) -> LabelArray:
    """Keep only the largest component of the whole pancreas, or of the lesion, 26-connected.

    Smaller lesions become pancreas, so that the whole pancreas does not change. An empty mask
    stays empty.
    """
    cleaned = labels.copy()
    if largest_lesion:
        lesion = labels == Label.LESION
        cleaned[lesion & ~largest_component(lesion)] = Label.PANCREAS
    if largest_pancreas:
        cleaned[~largest_component(labels > 0)] = Label.BACKGROUND
    return cleaned


def largest_component(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """The largest 26-connected component; of equally large ones the first; empty stays empty."""
    components, count = ndimage.label(mask, structure=np.ones((3, 3, 3)))
    if count <= 1:
        return mask
    sizes = np.bincount(components.ravel())
    sizes[0] = 0
    kept: npt.NDArray[np.bool_] = components == sizes.argmax()
    return kept


class MeanEntropy:
    """Mean entropy in nats over the voxels predicted as pancreas or lesion; 0 if there are none."""

    def __init__(self) -> None:
        self.sum, self.count = 0.0, 0

    def add(self, probabilities: FloatArray) -> None:
        """Take in more voxels, `(C, ...)`."""
        inside = probabilities[:, probabilities.argmax(axis=0) > 0]
        self.sum -= float((inside * np.log(np.maximum(inside, 1e-12))).sum(dtype=np.float64))
        self.count += inside.shape[1]

    @property
    def value(self) -> float:
        """Of all voxels so far."""
        return self.sum / max(self.count, 1)
