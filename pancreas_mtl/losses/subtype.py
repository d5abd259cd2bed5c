"""Cross-entropy of the subtype, weighted by how much of the lesion a patch holds."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from pancreas_mtl.types import UNKNOWN, Label

FULL_SHARE = 0.5
"""A patch that holds this share of its case's lesion counts fully."""


def subtype_loss(
    logits: Tensor, subtype: Tensor, weight: Tensor, *, label_smoothing: float = 0.0
) -> Tensor:
    """The mean, over the patches whose subtype is known, of weight times loss, float32.

    It is not divided by the weights: a batch that shows little of its lesions moves little.

    Args:
        logits: (B, S).
        subtype: (B,), UNKNOWN where not known.
        weight: (B,) in [0, 1], from `lesion_weight`.
        label_smoothing: share of the probability spread evenly, in [0, 1).

    Returns:
        A scalar; 0 with a gradient of 0 if no subtype is known.
    """
    known = subtype != UNKNOWN
    with torch.autocast(logits.device.type, enabled=False):
        each = F.cross_entropy(
            logits.float(),
            subtype.clamp_min(0),
            reduction="none",
            label_smoothing=label_smoothing,
        )
    return (each * weight * known).sum() / known.sum().clamp_min(1)


def lesion_weight(mask: Tensor, lesion_vox: Tensor) -> Tensor:
    """How much a patch may say about its case's subtype, (B,) in [0, 1].

    The share of the case's lesion that lies in the patch, FULL_SHARE counting as all of it; so a
    patch without lesion says nothing. A case whose lesion was never outlined weighs 1: then there
    is no telling.

    Args:
        mask: (B, 1, D, H, W) labels.
        lesion_vox: (B,) lesion voxels of the whole case; 0 if it has none or no mask.
    """
    inside = (mask == Label.LESION).flatten(1).sum(1).float()
    no_mask = (mask == UNKNOWN).flatten(1).any(1)
    share = inside / (FULL_SHARE * lesion_vox.float()).clamp_min(1)
    return torch.where(no_mask, torch.ones_like(share), share.clamp(max=1))
