"""From scores at the plan's spacing to labels in the source's spacing, and the clean-up."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache, reduce
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage
from torch import Tensor

from pancreas_mtl.types import FloatArray, Label, LabelArray, Triple

SLAB = 16  # slices of the source's grid that are held as floats at once
VOXELS_AT_ONCE = 1 << 24  # that are counted, as counting takes a copy in 64 bits


class Scores(Protocol):
    """Scores `(C, d, h, w)` of one model: logits of a single one, probabilities of several."""

    shape: tuple[int, ...]

    def planes(self, low: int, high: int) -> FloatArray:
        """Those of the planes `low` to `high` along d; `low` never goes back."""


class WholeScores:
    """Logits `(C, d, h, w)` that are there as a whole; `lesion_bias` is added to the lesion's."""

    def __init__(self, logits: FloatArray, lesion_bias: float = 0.0) -> None:
        self.logits = logits
        self.shape = logits.shape
        self._bias = np.zeros((len(logits), 1, 1, 1), np.float32)
        self._bias[Label.LESION] = lesion_bias

    def planes(self, low: int, high: int) -> FloatArray:
        """Those of the planes `low` to `high` along d."""
        return self.logits[:, low:high] + self._bias


class AxisMap(NamedTuple):
    """Linear interpolation of one axis: `(1 - share) * x[below] + share * x[above]`."""

    below: Tensor  # (n_out,) int64
    above: Tensor  # (n_out,) int64
    share: Tensor  # (n_out,) float32

    def at(self, here: slice) -> AxisMap:
        """Of a part of the output alone."""
        return AxisMap(self.below[here], self.above[here], self.share[here])


def labels_at(scores: Sequence[Scores], shape: Triple, *, orders: Sequence[Triple]) -> LabelArray:
    """Interpolate scores to the source's grid and take the label with the largest sum.

    Goes slab by slab from the first slice on, so that the scores never exist as a whole. What is
    interpolated is a mean of its neighbours; so where the background has the largest score in all
    of them, the answer is background, and nothing is computed.

    Args:
        scores: one per model.
        shape: `(D, H, W)` of the source.
        orders: spline order per axis and model, 0 or 1.
    """
    labels = np.zeros(shape, dtype=np.uint8)
    maps = [
        [axis_map(one.shape[1 + axis], shape[axis], order[axis]) for axis in range(3)]
        for one, order in zip(scores, orders, strict=True)
    ]
    for start in range(0, shape[0], SLAB):
        slab = slice(start, min(start + SLAB, shape[0]))
        planes, here = [], []
        for one, (along_d, *within) in zip(scores, maps, strict=True):
            part = along_d.at(slab)
            low, high = int(part.below.min()), int(part.above.max()) + 1
            planes.append(torch.from_numpy(one.planes(low, high)))
            here.append([AxisMap(part.below - low, part.above - low, part.share), *within])
        rows, columns = foreground_box(planes, here)
        if rows.start < rows.stop:
            boxes = [(d, h.at(rows), w.at(columns)) for d, h, w in here]
            summed = sum(interpolate(one, box) for one, box in zip(planes, boxes, strict=True))
            labels[slab, rows, columns] = largest(summed)  # type: ignore[arg-type]
    return labels


@lru_cache(maxsize=64)
def axis_map(n_in: int, n_out: int, order: int) -> AxisMap:
    """How `resample` interpolates one axis with splines of order 0 (nearest) or 1 (linear)."""
    centres = (torch.arange(n_out, dtype=torch.float64) + 0.5) * (n_in / n_out) - 0.5
    if order == 0:
        centres = (centres + 0.5).floor()
    centres.clamp_(0, n_in - 1)
    below = centres.floor().long()
    return AxisMap(below, (below + 1).clamp_(max=n_in - 1), (centres - below).float())


def foreground_box(
    planes: Sequence[Tensor], maps: Sequence[Sequence[AxisMap]]
) -> tuple[slice, slice]:
    """The rows and columns of the output that some voxel reaches which is not background.

    `planes` are (C, d, h, w), one per model; both slices are empty where all is background.
    """
    reached = [torch.zeros(len(along.below), dtype=torch.bool) for along in maps[0][1:]]
    for one, (_, *within) in zip(planes, maps, strict=True):
        inside = foreground(one).any(dim=0)  # (h, w)
        for axis, along in enumerate(within):
            line = inside.any(dim=1 - axis)
            reached[axis] |= line[along.below] | line[along.above]
    rows, columns = (found.nonzero().flatten().tolist() or [0, -1] for found in reached)
    return slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)


def foreground(scores: Tensor) -> Tensor:
    """Where a label other than the background has the largest score, (...) of (C, ...)."""
    return reduce(torch.maximum, scores[1:]) > scores[0]


def interpolate(scores: Tensor, maps: Sequence[AxisMap]) -> Tensor:
    """Scores (C, d, h, w) at the places of one map per axis."""
    for axis, (below, above, share) in enumerate(maps, start=1):
        near = scores.index_select(axis, below)
        if share.any():
            near.lerp_(scores.index_select(axis, above), share.view(-1, *[1] * (3 - axis)))
        scores = near
    return scores


def largest(scores: Tensor) -> LabelArray:
    """The label with the largest score (C, D, H, W); of several the smallest."""
    best, labels = scores[0], torch.zeros(scores.shape[1:], dtype=torch.uint8)
    for label in range(1, len(scores)):
        labels.masked_fill_(scores[label] > best, label)
        best = torch.maximum(best, scores[label])
    return labels.numpy()


def clean_up(labels: LabelArray, *, largest_pancreas: bool, largest_lesion: bool) -> LabelArray:
    """Keep only the largest component of the whole pancreas, then of the lesion, 26-connected.

    In that order, so that a lesion in the pancreas that is kept does not give way to a larger one
    elsewhere. Smaller lesions become pancreas, so that the whole pancreas does not change. An empty
    mask stays empty.
    """
    cleaned = labels.copy()
    if largest_pancreas:
        cleaned[~largest_component(labels > 0)] = Label.BACKGROUND
    if largest_lesion:
        lesion = cleaned == Label.LESION
        cleaned[lesion & ~largest_component(lesion)] = Label.PANCREAS
    return cleaned


def largest_component(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """The largest 26-connected component; of equally large ones the first; empty stays empty."""
    boxes = ndimage.find_objects(mask.view(np.uint8))
    if not boxes:
        return mask
    components, count = ndimage.label(mask[boxes[0]], structure=np.ones((3, 3, 3)))
    if count <= 1:
        return mask
    flat = components.reshape(-1)
    sizes = np.zeros(count + 1, np.int64)
    for start in range(0, len(flat), VOXELS_AT_ONCE):
        sizes += np.bincount(flat[start : start + VOXELS_AT_ONCE], minlength=count + 1)
    sizes[0] = 0
    kept = np.zeros_like(mask)
    kept[boxes[0]] = components == sizes.argmax()
    return kept


class MeanEntropy:
    """Mean entropy in nats over the voxels predicted as pancreas or lesion; 0 if there are none."""

    def __init__(self) -> None:
        self.sum, self.count = 0.0, 0

    def add(self, logits: Tensor) -> None:
        """Take in more voxels, `(C, ...)`."""
        inside = logits[:, foreground(logits)].float().log_softmax(dim=0)
        self.sum -= float((inside.exp() * inside).sum(dtype=torch.float64))
        self.count += inside.shape[1]

    @property
    def value(self) -> float:
        """Of all voxels so far."""
        return self.sum / max(self.count, 1)
