"""Instance normalisation and the leaky ReLU after it, as one module that copies nothing.

MONAI's blocks take both apart. `instance_norm` returns a view, and of an activation in place of a
view autograd copies the gradient back and forth: 6 % of a step of training on a CPU. Here the
activation is in place of what the view is of; the numbers are the same to the last bit.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from monai.networks.layers.factories import Act, Norm
from torch import Tensor, nn

SLOPE = 0.01
STYLE: dict[str, Any] = {
    "norm_name": ("INSTANCE_LEAKYRELU", {"affine": True}),
    "act_name": "NOTHING",  # the norm has done it
}
"""Of all of MONAI's blocks, so that they are as nnU-Net has them."""


class InstanceNormLeakyReLU(nn.InstanceNorm3d):
    """(B, C, D, H, W) to the same; weights and their names are those of `InstanceNorm3d`."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise each channel of each patch, then activate."""
        if not self.training:  # the plain function exports
            return F.leaky_relu_(super().forward(x), SLOPE)
        weight, bias = (p.repeat(len(x)) for p in (self.weight, self.bias))
        channels = x.flatten(0, 1)[None]  # as `instance_norm` does it
        normal = F.batch_norm(channels, None, None, weight, bias, training=True, eps=self.eps)
        return F.leaky_relu_(normal, SLOPE).view_as(x)


Norm.add_factory_callable("INSTANCE_LEAKYRELU", lambda _dim: InstanceNormLeakyReLU)
Act.add_factory_callable("NOTHING", lambda: nn.Identity)
