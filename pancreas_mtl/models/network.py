"""The shared network: one encoder, a decoder for the mask, a head for the subtype.

The blocks are MONAI's DynUNet's, which are nnU-Net's; they stand in a flat loop, so that every
encoder level is at hand, the graph compiles and exports, and nnU-Net's weights map onto it one to
one. As in nnU-Net, a decoder level has the kernel of the encoder's stage of its size (DynUNet gives
it that of the next coarser stage, 3 x 3 x 3 where anisotropic plans ask for 1 x 3 x 3). B, C, D, H,
W as in `types.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from monai.networks.blocks.dynunet_block import UnetBasicBlock, UnetOutBlock, UnetUpBlock
from monai.networks.nets import DynUNet
from torch import Tensor, nn

from pancreas_mtl.errors import UsageError
from pancreas_mtl.models.classifiers import HEADS, NoHead, SubtypeHead
from pancreas_mtl.models.norm_act import STYLE
from pancreas_mtl.models.regions import label_logits
from pancreas_mtl.types import (
    NUM_LABELS,
    NUM_REGIONS,
    UNKNOWN,
    Evidence,
    MultitaskOutput,
    Plan,
)

PARTS: dict[str, tuple[str, ...]] = {
    "encoder": ("input_block", "downsamples", "bottleneck"),
    "decoder": ("upsamples", "segmentation_heads"),
    "head": ("subtype_head",),
}
"""The network's parts, by the modules that make them up."""


@dataclass(frozen=True)
class NetworkConfig:
    """What a bundle must know, beside its plan, to build the network again.

    `head` is a name in `classifiers.HEADS`, or `none` in a network that only segments; `stages`,
    `hidden` and `dropout` are the head's.
    `detach_head` keeps the subtype's gradient out of the shared encoder. `regions`: the network
    answers with overlapping regions instead of labels, see `regions.py`.
    """

    head: str = "lesion"
    stages: tuple[int, ...] = (0, 1, 2)
    hidden: int = 32
    dropout: float = 0.2
    detach_head: bool = True
    regions: bool = False


class MultitaskUNet(nn.Module):
    """A U-Net with a segmentation head per decoder level and one subtype head.

    Args:
        plan: channels, kernels and strides.
        config: the subtype head.

    Raises:
        UsageError: the head or one of its stages does not exist, or it has nothing to look at.
    """

    def __init__(self, plan: Plan, config: NetworkConfig) -> None:
        super().__init__()
        stages = list(zip(plan.channels, plan.kernels, plan.strides, strict=True))
        self.input_block, *downsamples, self.bottleneck = (
            UnetBasicBlock(3, before, width, kernel, stride, **STYLE)
            for before, (width, kernel, stride) in zip((1, *plan.channels), stages, strict=False)
        )
        self.downsamples = nn.ModuleList(downsamples)
        levels = zip(plan.channels[1:], plan.channels, plan.kernels, plan.strides[1:], strict=False)
        self.upsamples = nn.ModuleList(
            UnetUpBlock(3, coarse, fine, kernel, stride, stride, trans_bias=True, **STYLE)
            for coarse, fine, kernel, stride in reversed(list(levels))
        )  # deepest first
        self.apply(DynUNet.initialize_weights)
        self.segmentation_heads = nn.ModuleList(
            UnetOutBlock(3, width, NUM_REGIONS if config.regions else NUM_LABELS)
            for width in plan.channels[:-1]
        )  # finest first
        self.subtype_head = build_head(plan, config)
        self.detach_head = config.detach_head
        self.regions = config.regions

    @property
    def has_subtype(self) -> bool:
        """Whether it has a subtype head; without one, evidence is empty and logits are zero."""
        return not isinstance(self.subtype_head, NoHead)

    def parameters_of(self, part: str) -> list[nn.Parameter]:
        """The parameters of one of PARTS."""
        return [p for name in PARTS[part] for p in self.get_submodule(name).parameters()]

    def forward(self, image: Tensor, guide: Tensor | None = None) -> MultitaskOutput:
        """Logits of the mask at every decoder level, and of the subtype from this window alone.

        With `regions`, those of the mask are the regions', (B, 2, D, H, W).

        Args:
            image: (B, 1, D, H, W), normalised, each size divisible by the plan's strides.
            guide: (B, 1, D, H, W) reference labels through which the head looks in training,
                instead of the predicted mask; UNKNOWN where the prediction is to be used. So the
                head learns what a lesion looks like before the decoder finds it.
        """
        features = self.encode(image)
        segmentation = self.decode(features, levels=len(self.segmentation_heads))
        evidence = self.gather(image, features, self.as_labels(segmentation[0]), guide)
        return MultitaskOutput(segmentation, self.classify(evidence), evidence)

    def window(self, image: Tensor) -> tuple[Tensor, Evidence]:
        """What prediction needs of one window: logits (B, C, D, H, W) and evidence."""
        features = self.encode(image)
        logits = self.as_labels(*self.decode(features, levels=1))
        return logits, self.gather(image, features, logits)

    def look(self, image: Tensor) -> tuple[Tensor, Evidence, Tensor]:
        """The same, and the head's pooling weights (B, R, D, H, W), float32."""
        features = self.encode(image)
        logits = self.as_labels(*self.decode(features, levels=1))
        with torch.autocast(logits.device.type, enabled=False):
            weights = self.subtype_head.attention(features, logits.float().softmax(dim=1))
        return logits, self.gather(image, features, logits), weights

    def encode(self, image: Tensor) -> list[Tensor]:
        """Features of every stage, finest first."""
        features = [self.input_block(image)]
        for block in (*self.downsamples, self.bottleneck):
            features.append(block(features[-1]))
        return features

    def decode(self, features: Sequence[Tensor], *, levels: int) -> tuple[Tensor, ...]:
        """Logits of the `levels` finest decoder levels, finest first."""
        x = features[-1]
        decoded: list[Tensor] = []
        for block, skip in zip(self.upsamples, reversed(features[:-1]), strict=True):
            x = block(x, skip)
            decoded.insert(0, x)
        heads = list(self.segmentation_heads)[:levels]
        return tuple(head(level) for head, level in zip(heads, decoded[:levels], strict=True))

    def as_labels(self, logits: Tensor) -> Tensor:
        """Logits of the labels (B, C, D, H, W) from what the segmentation heads give."""
        return label_logits(logits) if self.regions else logits

    def gather(
        self,
        image: Tensor,
        features: Sequence[Tensor],
        logits: Tensor,
        guide: Tensor | None = None,
    ) -> Evidence:
        """The subtype head's evidence in float32; the mask it looks through has no gradient."""
        if self.detach_head:
            features = [level.detach() for level in features]
        with torch.autocast(logits.device.type, enabled=False):
            probabilities = logits.detach().float().softmax(dim=1)
            if guide is not None:
                given = F.one_hot(guide[:, 0].clamp_min(0).long(), NUM_LABELS).movedim(-1, 1)
                probabilities = torch.where(guide == UNKNOWN, probabilities, given.float())
            evidence: Evidence = self.subtype_head.gather(image, features, probabilities)
        return evidence

    def classify(self, evidence: Evidence) -> Tensor:
        """Subtype logits (B, S), float32."""
        with torch.autocast(evidence.sums.device.type, enabled=False):
            logits: Tensor = self.subtype_head(evidence)
        return logits


def build_head(plan: Plan, config: NetworkConfig) -> SubtypeHead | NoHead:
    """The head that `config` names, fitted to the plan's stages."""
    if config.head == "none":
        return NoHead()
    if config.head not in HEADS:
        raise UsageError(f"model.head={str(config.head)[:80]}: choose one of {', '.join(HEADS)}")
    head = HEADS[config.head]
    depth = len(plan.channels)
    outside = [s for s in config.stages if not -depth <= s < depth]
    if outside or not (config.stages or head.sees_image):
        raise UsageError(
            f"model.stages={str(list(config.stages))[:80]}: choose of this plan's stages, "
            f"0 to {depth - 1}"
        )
    return head(
        plan,
        stages=config.stages,
        hidden=config.hidden,
        dropout=config.dropout,
    )
