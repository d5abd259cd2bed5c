"""Subtype heads: what they gather from a window, and what they make of a case.

Every head is two steps. `gather` pools the encoder's features, or the image, over one window into
`Evidence`, which adds up over windows; `forward` turns evidence into features of the case, and
these into logits. Training calls both on a patch; prediction gathers over all windows of the case
and classifies once. Both run in float32.

A head of your own: subclass `SubtypeHead`, add it to `HEADS`, and choose it by `model.head=NAME`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pancreas_mtl.models.pooling import (
    EPSILON,
    NUM_MAPS,
    NUM_SHELLS,
    Standardise,
    dilated,
    reach_of,
    shells,
    texture,
)
from pancreas_mtl.types import NUM_SUBTYPES, Evidence, Label, Plan, Triple


class SubtypeHead(nn.Module):
    """The interface of a head; `features` of a case are `sums / weights`, (B, F).

    Args:
        stages: the encoder stages it reads, 0 being the finest; negative counts from the deepest.
            May be empty where the head sees the image.
            (Subclasses also take the `plan`, which says what the stages look like.)
        hidden: width of its one hidden layer; 0 makes it linear.
        dropout: on the features.
        num_features: F.
    """

    sees_image = False
    """Whether it can do without any stage."""

    least_weight = 0.0
    """What an average must weigh to say anything of a case."""

    def __init__(
        self, stages: Sequence[int], num_features: int, *, hidden: int, dropout: float
    ) -> None:
        super().__init__()
        self.stages = tuple(stages)
        self.standardise = Standardise(num_features)
        layers: list[nn.Module] = [nn.Dropout(dropout)]
        if hidden:
            layers += [nn.Linear(num_features, hidden), nn.GELU(), nn.Dropout(dropout)]
        self.classify = nn.Sequential(*layers, nn.Linear(hidden or num_features, NUM_SUBTYPES))

    def gather(self, image: Tensor, features: Sequence[Tensor], probabilities: Tensor) -> Evidence:
        """Pool one window.

        Args:
            image: (B, 1, D, H, W), normalised.
            features: of every encoder stage, finest first, each (B, C, D, H, W).
            probabilities: of the labels at the finest stage, (B, C, D, H, W), float32, detached.
        """
        raise TypeError(f"{type(self).__name__} has to define gather")

    def forward(self, evidence: Evidence) -> Tensor:
        """Logits (B, S), float32, from the evidence of a window or of a whole case."""
        weights = evidence.weights.float()
        means = evidence.sums.float() / weights.clamp_min(EPSILON)
        learn = self.classify[-1].weight.requires_grad  # a frozen head stays as it is
        known = weights >= self.least_weight
        features = self.standardise(self.describe(means), known, learn=bool(learn))
        logits: Tensor = self.classify(features)
        return logits

    def describe(self, means: Tensor) -> Tensor:
        """Features (B, F) from the weighted means that the evidence amounts to, (B, F)."""
        return means

    def attention(self, features: Sequence[Tensor], probabilities: Tensor) -> Tensor:
        """Where the head looks: the weights of each average it takes, (B, R, D, H, W), >= 0.

        They lie at the finest stage, whatever stage the averages are of, and add up over windows
        as evidence does; a case's average weighs a voxel by its share of the case's sum.
        """
        return torch.ones_like(probabilities[:, :1])


class GapHead(SubtypeHead):
    """Global average pooling of the deepest stage and a linear layer: the usual baseline."""

    def __init__(
        self,
        plan: Plan,
        *,
        stages: Sequence[int],
        hidden: int,
        dropout: float,
    ) -> None:
        super().__init__(
            stages, sum(plan.channels[s] for s in stages), hidden=hidden, dropout=dropout
        )

    def gather(self, image: Tensor, features: Sequence[Tensor], probabilities: Tensor) -> Evidence:
        """The mean over all voxels; every window counts once."""
        means = [features[s].float().mean(dim=(2, 3, 4)) for s in self.stages]
        sums = torch.cat(means, dim=1)
        return Evidence(sums, torch.ones_like(sums))


class AttentionHead(SubtypeHead):
    """Learned queries weigh the voxels of each stage; the weights add up over windows.

    Ilse et al., Attention-based Deep Multiple Instance Learning, arXiv:1802.04712. Scores are
    bounded to +-SCORE_LIMIT, so that their exponentials stay finite and comparable between
    windows.
    """

    SCORE_LIMIT = 6.0

    def __init__(
        self,
        plan: Plan,
        *,
        stages: Sequence[int],
        hidden: int,
        dropout: float,
        queries: int = 4,
    ) -> None:
        width = queries * sum(plan.channels[s] for s in stages)
        super().__init__(stages, width, hidden=hidden, dropout=dropout)
        self.queries = nn.ModuleList(nn.Conv3d(plan.channels[s], queries, 1) for s in stages)

    def gather(self, image: Tensor, features: Sequence[Tensor], probabilities: Tensor) -> Evidence:
        """Exponential scores times features, per query and stage."""
        pools = []
        for stage, query in zip(self.stages, self.queries, strict=True):
            feature = features[stage].float()
            pools.append(_pool(feature, self._scores(feature, query)))
        return _side_by_side(pools)

    def attention(self, features: Sequence[Tensor], probabilities: Tensor) -> Tensor:
        """The scores of every stage and query."""
        maps = []
        for stage, query in zip(self.stages, self.queries, strict=True):
            feature = features[stage].float()
            scores = self._scores(feature, query).unflatten(2, feature.shape[2:])
            maps.append(F.interpolate(scores, probabilities.shape[2:]))
        return torch.cat(maps, 1)

    def _scores(self, feature: Tensor, query: nn.Module) -> Tensor:
        raw = query(feature).flatten(2)
        return torch.exp(self.SCORE_LIMIT * torch.tanh(raw / self.SCORE_LIMIT))  # (B, Q, N)


class LesionHead(SubtypeHead):
    """The image and the encoder's features in the lesion, around it, and in the pancreas.

    Texture, border and the pancreas are what tells the subtypes apart. The image itself is there
    because the encoder's instance normalisation takes away how bright a window is: means of its
    HU, detail and gradient in shells around the lesion's border, and in the pancreas. Of each
    encoder stage: means inside the lesion, in a ring around it and in the pancreas, and the
    standard deviation inside. Regions are soft: probabilities, averaged to each stage's grid.
    """

    sees_image = True
    least_weight = 0.5  # voxels of a region

    def __init__(
        self,
        plan: Plan,
        *,
        stages: Sequence[int],
        hidden: int,
        dropout: float,
    ) -> None:
        self.widths = [4 * plan.channels[s] for s in stages]  # three regions and the squares
        self.looks = NUM_MAPS * (NUM_SHELLS + 1)
        num_features = self.looks + sum(self.widths)
        super().__init__(stages, num_features, hidden=hidden, dropout=dropout)
        self.reductions = [plan.reductions[s] for s in stages]
        self.reach = reach_of(plan.spacing_mm)

    def gather(self, image: Tensor, features: Sequence[Tensor], probabilities: Tensor) -> Evidence:
        """Weighted sums of the image's maps, then per stage and region, then of squares."""
        pools = [_pool(texture(image.float()), self._surroundings(probabilities))]
        for stage, reduction in zip(self.stages, self.reductions, strict=True):
            feature = features[stage].float()
            region = self._regions(probabilities, reduction)
            pools += [_pool(feature, region), _pool(feature**2, region[:, :1])]
        return _side_by_side(pools)

    def describe(self, means: Tensor) -> Tensor:
        """The means of squares become standard deviations."""
        look, *blocks = means.split([self.looks, *self.widths], dim=1)
        described = [look]
        for block in blocks:
            lesion, ring, pancreas, squares = block.chunk(4, dim=1)
            spread = (squares - lesion**2).clamp_min(EPSILON).sqrt()
            described += [lesion, ring, pancreas, spread]
        return torch.cat(described, 1)

    def _surroundings(self, probabilities: Tensor) -> Tensor:
        around = shells(probabilities[:, Label.LESION, None], self.reach)
        return torch.cat([around, probabilities[:, Label.PANCREAS, None]], 1)  # (B, 8, D, H, W)

    def _regions(self, probabilities: Tensor, reduction: Triple) -> Tensor:
        pooled = F.avg_pool3d(probabilities, reduction)
        lesion = pooled[:, Label.LESION, None]
        pancreas = pooled[:, Label.PANCREAS, None]
        return torch.cat([lesion, dilated(lesion) - lesion, pancreas], 1)  # (B, 3, D, H, W)

    def attention(self, features: Sequence[Tensor], probabilities: Tensor) -> Tensor:
        """The surroundings of the lesion, then lesion, ring and pancreas of every stage."""
        regions = [self._regions(probabilities, reduction) for reduction in self.reductions]
        coarse = [F.interpolate(r, probabilities.shape[2:]) for r in regions]
        return torch.cat([self._surroundings(probabilities), *coarse], 1)


def _pool(values: Tensor, regions: Tensor) -> Evidence:
    """Sums of values (B, C, ...) over soft regions (B, R, ...), (B, R * C), and their weights."""
    values, regions = values.flatten(2), regions.flatten(2)
    sums = torch.einsum("brn,bcn->brc", regions, values).flatten(1)
    return Evidence(sums, regions.sum(2).repeat_interleave(values.shape[1], dim=1))


def _side_by_side(parts: Sequence[Evidence]) -> Evidence:
    """The evidence of several pools as one, (B, F)."""
    sums, weights = zip(*parts, strict=True)
    return Evidence(torch.cat(sums, 1), torch.cat(weights, 1))


class NoHead(nn.Module):
    """No subtype, in a network that only segments; its evidence is empty, F = 0."""

    def gather(self, image: Tensor, features: Sequence[Tensor], probabilities: Tensor) -> Evidence:
        """Nothing, (B, 0)."""
        nothing = probabilities.new_zeros(probabilities.shape[0], 0)
        return Evidence(nothing, nothing)

    def forward(self, evidence: Evidence) -> Tensor:
        """Logits (B, S) of zero, which prefer no subtype."""
        return evidence.sums.new_zeros(evidence.sums.shape[0], NUM_SUBTYPES)

    def attention(self, features: Sequence[Tensor], probabilities: Tensor) -> Tensor:
        """It looks nowhere: zeros, (B, 1, D, H, W)."""
        return torch.zeros_like(probabilities[:, :1])


HEADS: dict[str, type[GapHead] | type[AttentionHead] | type[LesionHead]] = {
    "gap": GapHead,
    "attention": AttentionHead,
    "lesion": LesionHead,
}
