"""Learning rate, averaging and guidance as functions of progress."""

from __future__ import annotations

import math
from typing import Literal

Decay = Literal["cosine", "poly"]
POLY_POWER = 0.9


def learning_rate_factor(step: int, *, total: int, warmup: int, decay: Decay) -> float:
    """The factor on the base learning rate at `step`, in (0, 1].

    Rises linearly over `warmup` steps, then falls as a half cosine, or as (1 - t)^0.9, nnU-Net's
    choice. Past `total` it stays at its last value.
    """
    if step < warmup:
        return (step + 1) / warmup
    t = min(step, total - 1) - warmup
    share = t / max(1, total - warmup)
    if decay == "poly":
        return (1 - share) ** POLY_POWER
    return 0.5 * (1 + math.cos(math.pi * share))


def ema_decay(updates: int, target: float) -> float:
    """Decay of the weights' moving average after `updates`; small at first, so that it forgets.

    The initial weights would otherwise weigh on the average for about 1 / (1 - target) steps.
    """
    return min(target, (1 + updates) / (10 + updates))


def guide_share(progress: float) -> float:
    """The share of patches whose subtype is read through the reference mask, in [0, 1].

    It falls to 0 by the middle of training, a progress of 0.5 (Bengio et al. 2015,
    arXiv:1506.03099, on learning from one's own predictions, little by little).
    """
    return max(0.0, 1 - 2 * progress)
