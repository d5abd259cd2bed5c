"""Overlapping regions instead of labels: the whole pancreas, and in it the lesion.

A network with regions answers with one sigmoid each, as nnU-Net's region-based training does
(Isensee et al., arXiv:2011.00848). Here they become logits of labels, so that nothing after the
network needs to know.
"""

from __future__ import annotations

import torch
from torch import Tensor


def label_logits(regions: Tensor) -> Tensor:
    """Logits of the labels (B, C, D, H, W) from those of the regions (B, 2, D, H, W).

    The largest is what painting gives: lesion where its logit is positive, else pancreas where the
    whole pancreas's is, else background. Far inside the pancreas the lesion's probability is its
    sigmoid; far from any lesion the pancreas's is the whole pancreas's.
    """
    whole, lesion = regions.float().unbind(dim=1)
    return torch.stack([torch.zeros_like(whole), whole, whole.clamp_min(0) + lesion], dim=1)
