"""The network in two modules of plain tensors, as tracers and other runtimes want it.

`WindowNetwork` answers to one window; evidence of all windows of a case adds up; `CaseClassifier`
turns it into the case's subtype. Neither has options, branches on values or named tuples.
"""

from __future__ import annotations

from torch import Tensor, nn

from pancreas_mtl.models.network import MultitaskUNet
from pancreas_mtl.types import Evidence


class WindowNetwork(nn.Module):
    """From windows to segmentation logits and evidence; shares the weights of `network`."""

    def __init__(self, network: MultitaskUNet) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits (B, C, D, H, W), evidence sums (B, F) and weights (B, F).

        Args:
            image: (B, 1, D, H, W), normalised, each size divisible by the plan's strides.
        """
        logits, evidence = self.network.window(image)
        return logits, evidence.sums, evidence.weights


class CaseClassifier(nn.Module):
    """From a case's evidence to its subtype; shares the weights of `network`."""

    def __init__(self, network: MultitaskUNet) -> None:
        super().__init__()
        self.network = network

    def forward(self, sums: Tensor, weights: Tensor) -> Tensor:
        """Subtype logits (B, S) of evidence (B, F), added up over windows; one row a view."""
        return self.network.classify(Evidence(sums, weights))
