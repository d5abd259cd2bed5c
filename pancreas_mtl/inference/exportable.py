"""The network in two modules as other runtimes want them: tensors in, tensors out.

`ExportableWindow` answers to one window; the evidence of a case's windows adds up, and
`ExportableClassifier` turns it into the case's subtype.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pancreas_mtl.inference.windows import window_size
from pancreas_mtl.models.network import MultitaskUNet
from pancreas_mtl.types import Evidence, Plan

INPUT_NAME = "image"


class ExportableWindow(nn.Module):
    """`MultitaskUNet.window` with its evidence as plain tensors; can be traced.

    Every size of the input may vary; D, H, W must be divisible by the plan's strides, and at least
    two strides long.

    Args:
        network: in evaluation mode.
    """

    def __init__(self, network: MultitaskUNet) -> None:
        super().__init__()
        self.network = network
        names = ("logits", "sums", "weights")
        self.output_names = names if network.has_subtype else names[:1]

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Logits (B, C, D, H, W), then sums and weights (B, F), if there is a subtype head.

        Args:
            image: (B, 1, D, H, W), normalised.
        """
        logits, evidence = self.network.window(image)
        return (logits, *evidence) if self.network.has_subtype else (logits,)


class ExportableClassifier(nn.Module):
    """`MultitaskUNet.classify` with plain tensors; can be traced.

    Args:
        network: in evaluation mode, with a subtype head.
    """

    input_names = ("sums", "weights")
    output_names = ("subtype",)

    def __init__(self, network: MultitaskUNet) -> None:
        super().__init__()
        self.network = network

    def forward(self, sums: Tensor, weights: Tensor) -> Tensor:
        """Subtype logits (B, S) of evidence (B, F), added up over windows; one row a view."""
        return self.network.classify(Evidence(sums, weights))


def example_image(plan: Plan) -> Tensor:
    """The smallest input (1, 1, D, H, W) that the plan's network takes, to trace with."""
    size = window_size((1, 1, 1), plan.patch_size, plan.reductions[-1])
    return torch.zeros(1, 1, *size)
