"""Subtype heads: what they gather from a window, and what they make of a case.

Every head is two steps. `gather` pools the encoder's features over one window into `Evidence`,
which adds up over windows; `forward` turns evidence into logits. Training calls both on a patch;
prediction gathers over all windows of the case and classifies once. Both run in float32.

A head of your own: subclass `SubtypeHead`, add it to `HEADS`, and choose it by `model.head=NAME`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pancreas_mtl.types import NUM_SUBTYPES, Evidence, Label, Triple

EPSILON = 1e-6


class SubtypeHead(nn.Module):
    """The interface of a head; `features` of a case are `sums / weights`, (B, F).

    Args:
        stages: the encoder stages it reads, 0 being the finest; negative counts from the deepest.
            (Subclasses also take the `channels` of every stage and its `reductions`, the factors
            by which its grid is coarser than the input's.)
        hidden: width of its one hidden layer; 0 makes it linear.
        dropout: on the features.
        num_features: F.
    """

    def __init__(
        self, stages: Sequence[int], num_features: int, *, hidden: int, dropout: float
    ) -> None:
        super().__init__()
        self.stages = tuple(stages)
        layers: list[nn.Module] = [nn.LayerNorm(num_features), nn.Dropout(dropout)]
        if hidden:
            layers += [nn.Linear(num_features, hidden), nn.GELU(), nn.Dropout(dropout)]
        self.classify = nn.Sequential(*layers, nn.Linear(hidden or num_features, NUM_SUBTYPES))

    def gather(self, features: Sequence[Tensor], probabilities: Tensor) -> Evidence:
        """Pool one window.

        Args:
            features: of every encoder stage, finest first, each (B, C, D, H, W).
            probabilities: of the labels at the finest stage, (B, C, D, H, W), float32, detached.
        """
        raise TypeError(f"{type(self).__name__} has to define gather")

    def forward(self, evidence: Evidence) -> Tensor:
        """Logits (B, S), float32, from the evidence of a window or of a whole case."""
        return self.classify(evidence.sums.float() / evidence.weights.float().clamp_min(EPSILON))

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
        channels: Sequence[int],
        reductions: Sequence[Triple],
        *,
        stages: Sequence[int],
        hidden: int,
        dropout: float,
    ) -> None:
        super().__init__(stages, sum(channels[s] for s in stages), hidden=hidden, dropout=dropout)

    def gather(self, features: Sequence[Tensor], probabilities: Tensor) -> Evidence:
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
        channels: Sequence[int],
        reductions: Sequence[Triple],
        *,
        stages: Sequence[int],
        hidden: int,
        dropout: float,
        queries: int = 4,
    ) -> None:
        width = queries * sum(channels[s] for s in stages)
        super().__init__(stages, width, hidden=hidden, dropout=dropout)
        self.queries = nn.ModuleList(nn.Conv3d(channels[s], queries, 1) for s in stages)

    def gather(self, features: Sequence[Tensor], probabilities: Tensor) -> Evidence:
        """Exponential scores times features, per query and stage."""
        sums, weights = [], []
        for stage, query in zip(self.stages, self.queries, strict=True):
            feature = features[stage].float()
            score = self._scores(feature, query)
            sums.append(torch.einsum("bqn,bcn->bqc", score, feature.flatten(2)).flatten(1))
            weights.append(score.sum(2).repeat_interleave(feature.shape[1], dim=1))
        return Evidence(torch.cat(sums, 1), torch.cat(weights, 1))

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
    """Means and spreads of features inside the predicted lesion, around it, and in the pancreas.

    Texture, border and upstream pancreas are what tells the subtypes apart, and they are fine:
    so the shallow stages count. The regions are soft: probabilities, averaged to each stage's
    grid. The spread is the standard deviation inside the lesion.
    """

    def __init__(
        self,
        channels: Sequence[int],
        reductions: Sequence[Triple],
        *,
        stages: Sequence[int],
        hidden: int,
        dropout: float,
    ) -> None:
        self.widths = [4 * channels[s] for s in stages]  # three regions and the squares
        super().__init__(stages, sum(self.widths), hidden=hidden, dropout=dropout)
        self.reductions = [reductions[s] for s in stages]

    def gather(self, features: Sequence[Tensor], probabilities: Tensor) -> Evidence:
        """Weighted sums per stage and region, then of squares inside the lesion."""
        sums, weights = [], []
        for stage, reduction in zip(self.stages, self.reductions, strict=True):
            feature = features[stage].float().flatten(2)  # (B, C, N)
            region = self._regions(probabilities, reduction).flatten(2)  # (B, 3, N)
            pooled = torch.einsum("brn,bcn->brc", region, feature)
            squares = torch.einsum("bn,bcn->bc", region[:, 0], feature**2)
            mass = region.sum(2)[:, [0, 1, 2, 0]]
            sums += [pooled.flatten(1), squares]
            weights.append(mass.repeat_interleave(feature.shape[1], dim=1))
        return Evidence(torch.cat(sums, 1), torch.cat(weights, 1))

    def forward(self, evidence: Evidence) -> Tensor:
        """Logits (B, S); the mean of squares becomes the standard deviation first."""
        mean = evidence.sums.float() / evidence.weights.float().clamp_min(EPSILON)
        blocks = []
        for block in mean.split(self.widths, dim=1):
            lesion, ring, pancreas, squares = block.chunk(4, dim=1)
            spread = (squares - lesion**2).clamp_min(EPSILON).sqrt()
            blocks += [lesion, ring, pancreas, spread]
        return self.classify(torch.cat(blocks, 1))

    def _regions(self, probabilities: Tensor, reduction: Triple) -> Tensor:
        pooled = F.avg_pool3d(probabilities, reduction)
        lesion = pooled[:, Label.LESION, None]
        pancreas = pooled[:, Label.PANCREAS, None]
        return torch.cat([lesion, dilated(lesion) - lesion, pancreas], 1)  # (B, 3, D, H, W)

    def attention(self, features: Sequence[Tensor], probabilities: Tensor) -> Tensor:
        """Lesion, ring and pancreas of every stage."""
        regions = [self._regions(probabilities, reduction) for reduction in self.reductions]
        return torch.cat([F.interpolate(r, probabilities.shape[2:]) for r in regions], 1)


def dilated(region: Tensor) -> Tensor:
    """The largest of each voxel's 3 x 3 x 3 neighbours and itself, axis by axis; values >= 0.

    What a max-pool of stride 1 gives, in a tenth of the time on a CPU.
    """
    for axis in range(3):
        margins = [0] * 2 * axis
        before, after = F.pad(region, [*margins, 1, -1]), F.pad(region, [*margins, -1, 1])
        region = torch.maximum(region, torch.maximum(before, after))
    return region


class NoHead(nn.Module):
    """No subtype, as in a network from elsewhere that only segments; its evidence is empty, F = 0.

    It cannot be trained, so `HEADS` leaves it out.
    """

    def gather(self, features: Sequence[Tensor], probabilities: Tensor) -> Evidence:
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
