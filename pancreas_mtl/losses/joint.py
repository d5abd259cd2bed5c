"""The sum that training minimises, with its parts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from pancreas_mtl.losses.segmentation import segmentation_loss
from pancreas_mtl.losses.subtype import lesion_weight, subtype_loss
from pancreas_mtl.types import Batch, MultitaskOutput


class LossParts(NamedTuple):
    """Scalars; `total` is what is minimised, the others are unweighted."""

    total: Tensor
    segmentation: Tensor
    subtype: Tensor


@dataclass(frozen=True)
class LossConfig:
    """How the two losses are joined.

    `subtype_weight` is reached by a linear ramp over the share `ramp` of the training, after the
    share `wait` without the subtype's loss. Shares, so that a short training is a small copy of a
    long one. `lesion_weighted` lets a patch count by its share of the lesion.
    """

    subtype_weight: float = 0.5
    wait: float = 0.0
    ramp: float = 0.05
    label_smoothing: float = 0.0
    lesion_weighted: bool = True


def joint_loss(
    output: MultitaskOutput, batch: Batch, config: LossConfig, progress: float
) -> LossParts:
    """Segmentation loss plus weighted subtype loss; labels that are missing are left out."""
    segmentation = segmentation_loss(output.segmentation, batch.mask)
    weight = lesion_weight(batch.mask, batch.lesion_vox)
    subtype = subtype_loss(
        output.subtype,
        batch.subtype,
        weight if config.lesion_weighted else torch.ones_like(weight),
        label_smoothing=config.label_smoothing,
    )
    return LossParts(
        segmentation + subtype_weight(config, progress) * subtype, segmentation, subtype
    )


def subtype_weight(config: LossConfig, progress: float) -> float:
    """The subtype's weight at a progress in [0, 1] of training, in [0, config.subtype_weight]."""
    if config.ramp <= 0:
        return config.subtype_weight if progress >= config.wait else 0.0
    ramp = (progress - config.wait) / config.ramp
    return config.subtype_weight * min(1.0, max(0.0, ramp))
