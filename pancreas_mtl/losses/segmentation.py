"""Dice and cross-entropy over the decoder's levels, in float32, on the cases that have a mask."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from monai.losses import DiceCELoss, DiceLoss
from torch import Tensor

from pancreas_mtl.types import NUM_REGIONS, UNKNOWN, Label


def segmentation_loss(levels: Sequence[Tensor], mask: Tensor) -> Tensor:
    """Deeply supervised Dice and cross-entropy, as in nnU-Net.

    Isensee et al., doi:10.1038/s41592-020-01008-z. Dice is taken over the batch, so that patches
    without lesion do not dominate it.

    Args:
        levels: logits (B, C, D, H, W) of labels, or (B, 2, D, H, W) of regions, finest first, each
            coarser level weighing half.
        mask: (B, 1, D, H, W) labels; a case with any UNKNOWN voxel is left out.

    Returns:
        A scalar, float32; 0 with a gradient of 0 if no case has a mask.
    """
    labelled = (mask != UNKNOWN).flatten(1).all(1)
    total = sum(
        (logits.float().sum() * 0 for logits in levels), torch.zeros((), device=mask.device)
    )
    if not labelled.any():
        return total
    weights = level_weights(len(levels))
    target = mask[labelled].float()
    one_level = region_dice_bce if levels[0].shape[1] == NUM_REGIONS else dice_ce
    for weight, logits in zip(weights, levels, strict=True):
        coarse = F.interpolate(target, logits.shape[2:], mode="nearest-exact")
        total = total + weight * one_level(logits[labelled], coarse)
    return total


def dice_ce(logits: Tensor, target: Tensor) -> Tensor:
    """Soft Dice over pancreas and lesion, plus cross-entropy over all labels; range >= 0."""
    loss = DiceCELoss(to_onehot_y=True, softmax=True, include_background=False, batch=True)
    with torch.autocast(logits.device.type, enabled=False):
        value: Tensor = loss(logits.float(), target)
    return value


def region_dice_bce(logits: Tensor, target: Tensor) -> Tensor:
    """The same for logits (B, 2, D, H, W) of whole pancreas and lesion, which overlap."""
    regions = torch.cat([target > Label.BACKGROUND, target == Label.LESION], dim=1).float()
    with torch.autocast(logits.device.type, enabled=False):
        dice: Tensor = DiceLoss(sigmoid=True, batch=True)(logits.float(), regions)
        return dice + F.binary_cross_entropy_with_logits(logits.float(), regions)


def level_weights(levels: int) -> list[float]:
    """Halving from level to level, the coarsest left out where there are others; sums to 1."""
    kept = max(1, levels - 1)
    weights = [0.5**level if level < kept else 0.0 for level in range(levels)]
    return [weight / sum(weights) for weight in weights]
