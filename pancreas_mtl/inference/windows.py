"""Sliding windows over one image: where they lie, how they are weighed, what they add up to."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor

from pancreas_mtl.types import NUM_LABELS, Evidence, Triple

Window = Callable[[Tensor], tuple[Tensor, Evidence]]
"""From images (B, 1, D, H, W) to logits (B, C, D, H, W) and evidence (B, F)."""

Look = Callable[[Tensor], tuple[Tensor, Evidence, Tensor]]
"""The same, and the subtype head's pooling weights (B, R, D, H, W)."""

MIRROR_AXES = (0, 1, 2)


class WholeCase(NamedTuple):
    """What the windows of a case add up to; `evidence` has one row per mirrored view, (V, F)."""

    logits: Tensor  # (C, D, H, W) float32
    evidence: Evidence


class WindowScores:
    """Logits of one image of any size, computed as their planes along D are asked for.

    Only the planes that unfinished windows touch are held, so memory does not grow with the number
    of slices, but for where a head looked, which is held whole if it is asked for. Windows overlap
    by `1 - step` and weigh by a Gaussian, as in nnU-Net (doi:10.1038/s41592-020-01008-z). A smaller
    image is padded to a patch, as in training; or else, with `divisor`, a window takes the image's
    own size along an axis that fits into it, so that no time goes into padding. Of such a smaller
    window, several mirrored views go through the network at once.

    Args:
        window: the network, on the device of `image`.
        image: (D, H, W) float32, normalised; padded with 0, the mean, where needed.
        patch_size: the largest window.
        divisor: what the sizes of smaller windows must be divisible by; None: pad to the patch.
        step: distance between windows as a share of their size, in (0, 1].
        mirror_axes: axes to mirror; every subset is one more view, so 3 axes make 8 passes.
        look: the network again, which also gives its pooling weights; it takes the place of
            `window` in the unmirrored view, so it costs no further pass.
    """

    def __init__(
        self,
        window: Window,
        image: Tensor,
        *,
        patch_size: Triple,
        divisor: Triple | None = None,
        step: float = 0.5,
        mirror_axes: Sequence[int] = (),
        look: Look | None = None,
    ) -> None:
        self.shape = (NUM_LABELS, *image.shape)
        self._size = window_size(image.shape, patch_size, divisor) if divisor else patch_size
        self._image, self._inside = _pad_to(image, self._size)
        self._window, self._look, self._views = window, look, mirror_views(mirror_axes)
        self._at_once = math.prod(patch_size) // math.prod(self._size)
        self._todo = window_starts(tuple(self._image.shape), self._size, step)  # by D first
        self._weight = gaussian_weight(self._size).to(image.device)
        self._low = 0  # of the padded image, the first plane that is held
        self._total = self._image.new_zeros((NUM_LABELS, 0, *self._image.shape[1:]))
        self._mass = self._total[0]
        self._evidence: Evidence | None = None
        self._attention: Tensor | None = None

    def planes(self, low: int, high: int) -> Tensor:
        """Logits (C, high - low, H, W) of the planes `low` to `high`; `low` may never go back."""
        depth, height, width = self._inside
        low, high = low + depth.start, high + depth.start
        here = [start for start in self._todo if start[0] < high]
        self._hold(low, max([high, *(start[0] + self._size[0] for start in here)]))
        for start in here:
            self._add(start)
        self._todo = self._todo[len(here) :]
        logits = self._total[:, : high - low] / self._mass[: high - low]
        return logits[:, :, height, width]

    @property
    def evidence(self) -> Evidence:
        """That of all windows together, one row per mirrored view, (V, F)."""
        self.planes(self.shape[1], self.shape[1])  # whatever nobody has asked for yet
        assert self._evidence is not None
        return self._evidence

    @property
    def attention(self) -> Tensor | None:
        """The pooling weights of all windows together, (R, D, H, W); None where nobody looks."""
        self.planes(self.shape[1], self.shape[1])
        return None if self._attention is None else self._attention[(slice(None), *self._inside)]

    def _hold(self, low: int, high: int) -> None:
        """Let go of the planes before `low`, and make room up to `high`."""
        total, mass = self._total[:, low - self._low :], self._mass[low - self._low :]
        if (missing := high - low - len(mass)) > 0:
            total = F.pad(total, (0, 0, 0, 0, 0, missing))
            mass = F.pad(mass, (0, 0, 0, 0, 0, missing))
        self._low, self._total, self._mass = low, total, mass

    def _add(self, start: Triple) -> None:
        depth, *plane = (slice(s, s + k) for s, k in zip(start, self._size, strict=True))
        patch = self._image[(depth, *plane)]
        logits, evidence, seen = _mean_over_views(
            self._window, self._look, patch, self._views, self._at_once
        )
        first = max(0, self._low - start[0])  # planes of it that nobody needs any more
        last = max(0, start[0] + self._size[0] - self._low)
        held = slice(start[0] + first - self._low if last else 0, last)
        weight = self._weight[first:]
        self._total[(slice(None), held, *plane)] += logits[:, first:] * weight
        self._mass[(held, *plane)] += weight
        before = [] if self._evidence is None else [self._evidence]
        self._evidence = add_evidence([*before, evidence])  # a list would scatter the heap
        if seen is not None:
            if self._attention is None:
                self._attention = self._image.new_zeros((len(seen), *self._image.shape))
            self._attention[(slice(None), depth, *plane)] += seen


def predict_windows(
    window: Window,
    image: Tensor,
    *,
    patch_size: Triple,
    divisor: Triple | None = None,
    step: float = 0.5,
    mirror_axes: Sequence[int] = (),
) -> WholeCase:
    """All of `WindowScores` at once, for images that are small enough."""
    scores = WindowScores(
        window, image, patch_size=patch_size, divisor=divisor, step=step, mirror_axes=mirror_axes
    )
    return WholeCase(scores.planes(0, image.shape[0]), scores.evidence)


def _mean_over_views(
    window: Window,
    look: Look | None,
    patch: Tensor,
    views: Sequence[tuple[int, ...]],
    at_once: int,
) -> tuple[Tensor, Evidence, Tensor | None]:
    """The mean of the logits, mirrored back, the evidence of each view (V, F), and the weights."""
    total: Tensor | None = None
    rows, seen = [], None
    for some in _chunks(views, at_once):
        images = torch.stack([patch.flip(axes) for axes in some])[:, None]
        if look is None or seen is not None:
            logits, evidence = window(images)
        else:  # the first of the first views is the unmirrored one
            logits, evidence, weights = look(images)
            seen = weights[0]
        rows.append(evidence)
        for one, axes in zip(logits, some, strict=True):
            unmirrored = one.float().flip([axis + 1 for axis in axes])
            total = unmirrored if total is None else total.add_(unmirrored)
    assert total is not None
    sums, weights = torch.cat([r.sums for r in rows]), torch.cat([r.weights for r in rows])
    return total.div_(len(views)), Evidence(sums, weights), seen


def _chunks(views: Sequence[tuple[int, ...]], limit: int) -> list[Sequence[tuple[int, ...]]]:
    """The views, whose number is a power of two, in equal parts of at most `limit`, or of one."""
    size = 1
    while 2 * size <= min(limit, len(views)):
        size *= 2
    return [views[first : first + size] for first in range(0, len(views), size)]


def add_evidence(parts: Sequence[Evidence]) -> Evidence:
    """The evidence of several windows together."""
    return Evidence(sum(p.sums for p in parts), sum(p.weights for p in parts))  # type: ignore[arg-type]


def mirror_views(axes: Sequence[int]) -> list[tuple[int, ...]]:
    """Every subset of the axes, the unmirrored view first."""
    return [subset for n in range(len(axes) + 1) for subset in itertools.combinations(axes, n)]


def window_size(shape: Sequence[int], patch_size: Triple, divisor: Triple) -> Triple:
    """The patch, or along axes that fit, the image's size rounded up; at least two strides.

    (Instance normalisation needs more than one voxel at the deepest stage.)
    """
    d, h, w = (
        min(patch, max(math.ceil(n / k), 2) * k)
        for n, patch, k in zip(shape, patch_size, divisor, strict=True)
    )
    return d, h, w


def window_starts(shape: Sequence[int], size: Triple, step: float) -> list[Triple]:
    """First voxels of evenly spread windows, at most `step` of their size apart, as in nnU-Net."""
    per_axis = []
    for n, k in zip(shape, size, strict=True):
        count = math.ceil((n - k) / (k * step)) + 1
        stride = (n - k) / max(count - 1, 1)
        per_axis.append([round(stride * i) for i in range(count)])
    return [(d, h, w) for d, h, w in itertools.product(*per_axis)]


@lru_cache(maxsize=16)
def gaussian_weight(size: Triple) -> Tensor:
    """Weights (D, H, W) in (0, 10]: a Gaussian with a sigma of an eighth of the window.

    Rounded to float16, and the smallest value instead of 0, as in nnU-Net: near the corners, where
    float16 ends, the weights of overlapping windows then stand in nnU-Net's proportion.
    """
    impulse = np.zeros(size)
    impulse[tuple(n // 2 for n in size)] = 1
    weight = ndimage.gaussian_filter(impulse, [n / 8 for n in size], mode="constant")
    rounded = torch.from_numpy(10 * weight / weight.max()).half().float()
    return rounded.clamp_min_(float(rounded[rounded > 0].min()))


def _pad_to(image: Tensor, size: Triple) -> tuple[Tensor, tuple[slice, ...]]:
    """Centre the image in at least `size` voxels; also where it then lies."""
    missing = [max(0, k - n) for n, k in zip(image.shape, size, strict=True)]
    before = [m // 2 for m in missing]
    margins = [
        side
        for b, m in zip(reversed(before), reversed(missing), strict=True)
        for side in (b, m - b)
    ]
    inside = tuple(slice(b, b + n) for b, n in zip(before, image.shape, strict=True))
    return (F.pad(image, margins) if any(missing) else image), inside
