"""What lies beside the masks, where it is asked for, each in a folder of its name.

lesion_candidates  float32: every candidate's voxels hold its score in (0, 1], 0 elsewhere
attention          uint8: the subtype head's pooling weights, 255 for the largest one
previews           PNG: see `pictures`
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from pancreas_mtl.data.resample import resample
from pancreas_mtl.metrics.surface import Mask
from pancreas_mtl.types import FloatArray, Triple

PREVIEWS = "previews"
MAX_CANDIDATES = 5
MIN_SCORE = 0.1  # of a candidate's peak
MIN_VOXELS = 10
PEAK_PER_BORDER = 2.5
NEIGHBOURS = np.ones((3, 3, 3))


def maps_at(
    raw: Sequence[Mapping[str, FloatArray]], shape: Triple, *, orders: Sequence[Triple]
) -> dict[str, npt.NDArray[Any]]:
    """Finish maps in the source's grid.

    Args:
        raw: per model, the lesion's probability for `lesion_candidates`, `pooling_shares` for
            `attention`, each (d, h, w); the mean of the models that have it counts.
        shape: `(D, H, W)` of the source.
        orders: spline order per axis and model.
    """
    finished = {}
    for name, finish in MAPS.items():
        pairs = zip(raw, orders, strict=True)
        models = [resample(one[name], shape, orders=order) for one, order in pairs if name in one]
        if models:
            finished[name] = finish(np.mean(models, axis=0))
    return finished


def lesion_candidates(probability: FloatArray) -> FloatArray:
    """Cut a lesion's probability (D, H, W) into candidates, each of which holds its peak.

    Peak by peak, what is connected to it above its 2.5th part is one candidate, so a faint lesion
    beside a certain one gets a border of its own. What is too small, or touches a candidate that
    is there already, is none. This is the rule by which the PI-CAI challenge's baseline turns
    probabilities into a detection map (Bosma et al. 2021, arXiv:2112.05151).
    """
    found = np.zeros_like(probability)
    parts = list(_parts(probability, probability >= MIN_SCORE, low=(0, 0, 0)))
    heapify(parts)
    count = 0
    while parts and count < MAX_CANDIDATES:
        part = heappop(parts)
        here = np.where(part.mask, probability[part.box], 0)
        components, _ = ndimage.label(here > part.peak / PEAK_PER_BORDER, NEIGHBOURS)
        candidate = components == components[np.unravel_index(here.argmax(), here.shape)]
        touches = found[part.box][ndimage.binary_dilation(candidate, NEIGHBOURS)].any()
        if np.count_nonzero(candidate) >= MIN_VOXELS and not touches:
            found[part.box][candidate] = part.peak
            count += 1
        for rest in _parts(probability, part.mask & ~candidate, low=part.low):
            heappush(parts, rest)
    return found


@dataclass
class _Part:
    """Voxels that hang together; those with the highest peak come first."""

    peak: float
    box: tuple[slice, ...]  # with a margin of one voxel, so that what touches a part is in it
    mask: Mask  # within the box

    @property
    def low(self) -> Triple:
        """Where the box begins."""
        d, h, w = (one.start for one in self.box)
        return d, h, w

    def __lt__(self, other: _Part) -> bool:
        return self.peak > other.peak


def _parts(probability: FloatArray, mask: Mask, *, low: Triple) -> Iterator[_Part]:
    """The connected parts of a mask that begins at `low`; what is too small is left out.

    A candidate lies within one part. So that noise with a thousand peaks takes no longer than a
    lesion, each is looked at in a box of its own.
    """
    components, _ = ndimage.label(mask, NEIGHBOURS)
    boxes, sizes = ndimage.find_objects(components), np.bincount(components.ravel())
    for index in np.flatnonzero(sizes[1:] >= MIN_VOXELS):
        near = tuple(slice(max(0, one.start - 1), one.stop + 1) for one in boxes[index])
        box = tuple(slice(a + o.start, a + o.stop) for a, o in zip(low, near, strict=True))
        part = components[near] == index + 1
        yield _Part(float(probability[box][part].max()), box, part)


def pooling_shares(weights: FloatArray) -> FloatArray:
    """The mean over R averages of each voxel's share in it, (d, h, w), from weights (R, d, h, w).

    An average without any weight, as of a lesion where there is none, leaves nothing.
    """
    shares = np.zeros(weights.shape[1:], np.float32)
    for average in weights:  # one by one, since a copy of all may not fit into memory
        shares += average / np.float32(max(average.sum(dtype=np.float64), 1e-12))
    return shares / np.float32(len(weights))


def quantised(shares: FloatArray) -> npt.NDArray[np.uint8]:
    """Shares in 255 steps of the largest one; all 0 where all are."""
    return np.rint(shares * (255 / max(float(shares.max()), 1e-30))).astype(np.uint8)


MAPS: Mapping[str, Callable[[FloatArray], npt.NDArray[Any]]] = {
    "lesion_candidates": lesion_candidates,
    "attention": quantised,
}
