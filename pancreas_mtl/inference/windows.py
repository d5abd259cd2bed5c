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

MIRROR_AXES = (0, 1, 2)


class WholeCase(NamedTuple):
    """What the windows of a case add up to; `evidence` has one row per mirrored view, (V, F)."""

    logits: Tensor  # (C, D, H, W) float32
    evidence: Evidence


def predict_windows(
    window: Window,
    image: Tensor,
    *,
    patch_size: Triple,
    divisor: Triple,
    step: float = 0.5,
    mirror_axes: Sequence[int] = (),
) -> WholeCase:
    """Run the network over an image of any size.

    Windows overlap by `1 - step` and weigh by a Gaussian, as in nnU-Net
    (doi:10.1038/s41592-020-01008-z). Along an axis that fits into one window, the window takes the
    image's own size rounded up to the network's stride, so that no time goes into padding.

    Args:
        window: the network, on the device of `image`.
        image: (D, H, W) float32, normalised; padded with 0, the mean, where needed.
        patch_size: the largest window.
        divisor: what window sizes must be divisible by.
        step: distance between windows as a share of their size, in (0, 1].
        mirror_axes: axes to mirror; every subset is one more view, so 3 axes make 8 passes.
    """
    size = window_size(tuple(image.shape), patch_size, divisor)
    padded, inside = _pad_to(image, size)
    views = mirror_views(mirror_axes)
    starts = window_starts(tuple(padded.shape), size, step)
    weight = gaussian_weight(size).to(image.device)
    total = torch.zeros((NUM_LABELS, *padded.shape), device=image.device)
    mass = torch.zeros(padded.shape, device=image.device)
    gathered: list[Evidence] = []
    for start in starts:
        here = tuple(slice(s, s + k) for s, k in zip(start, size, strict=True))
        logits, evidence = _mean_over_views(window, padded[here], views)
        total[(slice(None), *here)] += logits * weight
        mass[here] += weight
        gathered.append(evidence)
    logits = (total / mass)[(slice(None), *inside)]
    return WholeCase(logits, add_evidence(gathered))


def _mean_over_views(
    window: Window, patch: Tensor, views: Sequence[tuple[int, ...]]
) -> tuple[Tensor, Evidence]:
    """The mean of the logits, mirrored back, and the evidence of each view, (V, F)."""
    mean: Tensor | float = 0.0
    rows = []
    for axes in views:
        flip = [axis + 2 for axis in axes]
        logits, evidence = window(patch[None, None].flip(flip))
        mean = mean + logits.float().flip(flip)[0] / len(views)
        rows.append(evidence)
    assert isinstance(mean, Tensor)
    return mean, Evidence(torch.cat([r.sums for r in rows]), torch.cat([r.weights for r in rows]))


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
    """Weights (D, H, W) in (0, 1]: a Gaussian with a sigma of an eighth of the window."""
    impulse = np.zeros(size, dtype=np.float32)
    impulse[tuple(n // 2 for n in size)] = 1
    weight = ndimage.gaussian_filter(impulse, [n / 8 for n in size], mode="constant")
    weight /= weight.max()
    return torch.from_numpy(np.maximum(weight, weight[weight > 0].min()))


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
    return F.pad(image, margins), inside
