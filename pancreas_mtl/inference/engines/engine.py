"""What every engine is."""

from __future__ import annotations

from typing import Literal, Protocol

import torch
from torch import Tensor

from pancreas_mtl.types import Evidence

Precision = Literal["auto", "fp32", "bf16", "fp16"]


class Engine(Protocol):
    """Runs one network; `device` is where images have to be, `precision` is what it computes in."""

    device: torch.device
    precision: str

    def __call__(self, images: Tensor) -> tuple[Tensor, Evidence]:
        """Logits (B, C, D, H, W) and evidence (B, F), float32, of windows (B, 1, D, H, W)."""

    def classify(self, evidence: Evidence) -> Tensor:
        """Subtype logits (B, S), float32, of whole-case evidence."""

    def look(self, images: Tensor) -> tuple[Tensor, Evidence, Tensor]:
        """As a call, and the subtype head's pooling weights (B, R, D, H, W)."""
