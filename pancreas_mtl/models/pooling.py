"""What subtype heads are made of: regions to pool over, maps of the image, standardisation."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pancreas_mtl.types import Triple, TripleMm

EPSILON = 1e-6
SHELL_MM = 1.5
"""Thickness of a shell around the lesion's border."""

NUM_MAPS = 3
NUM_SHELLS = 7


class Standardise(nn.Module):
    """Features (B, F) minus their running mean, divided by their running spread.

    The same in training and prediction, unlike batch normalisation, as batches are of two. A
    feature that is not known, say of the core of a lesion that has none, becomes 0, the mean.
    """

    MOMENTUM = 0.01
    PRIOR = 10  # batches that mean 0 and spread 1 count for at the start
    LIMIT = 5.0  # of what comes out; further out, a case is unlike all that was learned

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.mean: Tensor
        self.square: Tensor
        self.batches: Tensor
        self.register_buffer("mean", torch.zeros(num_features))
        self.register_buffer("square", torch.ones(num_features))
        self.register_buffer("batches", torch.zeros(num_features))

    def forward(self, features: Tensor, known: Tensor, *, learn: bool = True) -> Tensor:
        """Standardised features (B, F); `known` is as large, and bool.

        With `learn`, training goes on with the running mean and spread.
        """
        if self.training and learn:
            self._learn(features.detach(), known)
        spread = (self.square - self.mean**2).clamp_min(EPSILON).sqrt()
        standard = ((features - self.mean) / spread).clamp(-self.LIMIT, self.LIMIT)
        return torch.where(known, standard, 0.0)

    @torch.no_grad()
    def _learn(self, features: Tensor, known: Tensor) -> None:
        known = known & features.isfinite()
        count = known.sum(0)
        share = (1 / (self.batches + self.PRIOR + 1)).clamp_min(self.MOMENTUM) * (count > 0)
        values = torch.where(known, features, 0.0)
        for running, new in ((self.mean, values), (self.square, values**2)):
            running.lerp_(new.sum(0) / count.clamp_min(1), share)
        self.batches += count > 0


def texture(image: Tensor) -> Tensor:
    """The image (B, 1, D, H, W), its detail and its gradient, in its planes; (B, 3, D, H, W).

    Detail is what differs from the mean of 3 x 3 neighbours.
    """
    around = F.pad(image, (1, 1, 1, 1, 0, 0), mode="replicate")
    detail = image - F.avg_pool3d(around, (1, 3, 3), stride=1)
    down = around[..., 2:, 1:-1] - around[..., :-2, 1:-1]
    right = around[..., 1:-1, 2:] - around[..., 1:-1, :-2]
    return torch.cat([image, detail, (down**2 + right**2).sqrt()], dim=1)


def shells(lesion: Tensor, reach: Triple) -> Tensor:
    """The lesion's core, three shells inside its border and three outside; (B, 7, D, H, W).

    Args:
        lesion: probabilities (B, 1, D, H, W).
        reach: thickness of a shell in voxels along each axis, see `reach_of`.
    """
    inside, outside = [lesion], [lesion]
    for _ in range(3):
        inside.append(1 - dilated(1 - inside[-1], reach))
        outside.append(dilated(outside[-1], reach))
    levels = [*outside[::-1], *inside[1:]]  # each lies in the one before
    differences = [wide - narrow for wide, narrow in pairwise(levels)]
    return torch.cat([*differences, levels[-1]], dim=1).clamp_min(0)  # as sums round


def reach_of(spacing_mm: TripleMm) -> Triple:
    """A shell's thickness in voxels; 0 along an axis whose voxels are much longer."""
    d, h, w = (round(SHELL_MM / edge) for edge in spacing_mm)
    return d, max(h, 1), max(w, 1)


def dilated(region: Tensor, reach: Sequence[int] = (1, 1, 1)) -> Tensor:
    """The largest of each voxel and its neighbours within reach, axis by axis; values >= 0.

    What a max-pool of stride 1 gives, in a tenth of the time on a CPU.
    """
    for axis, steps in enumerate(reversed(reach)):
        margins = [0] * 2 * axis
        for _ in range(steps):
            before, after = F.pad(region, [*margins, 1, -1]), F.pad(region, [*margins, -1, 1])
            region = torch.maximum(region, torch.maximum(before, after))
    return region
