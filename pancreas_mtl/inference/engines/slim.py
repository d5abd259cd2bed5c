"""Kernels without their outer planes of zeros: the same answer for less work.

An imported 1 x 3 x 3 kernel sits in the middle of a 3 x 3 x 3 one; two thirds of its products are
with zeros.
"""

from __future__ import annotations

from torch import nn


def drop_zero_planes(network: nn.Module) -> None:
    """Shrink, in place, every convolution whose outermost planes along an axis are all zero.

    What the network computes stays the same; its weights no longer have the plan's shapes.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv3d):
            for axis in range(3):
                _shrink(module, axis)


def _shrink(convolution: nn.Conv3d, axis: int) -> None:
    planes = convolution.weight.detach().movedim(axis + 2, 0)
    padding = [int(side) for side in convolution.padding]
    cut = 0
    while cut < padding[axis] and not (planes[cut].any() or planes[-1 - cut].any()):
        cut += 1
    if cut == 0:
        return
    smaller = planes[cut : len(planes) - cut].movedim(0, axis + 2).contiguous()
    padding[axis] -= cut
    convolution.weight = nn.Parameter(smaller, requires_grad=convolution.weight.requires_grad)
    convolution.kernel_size = tuple(smaller.shape[2:])
    convolution.padding = tuple(padding)
