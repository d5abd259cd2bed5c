"""Turns, scales, crops and flips image and mask together, by one interpolation at most."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from pancreas_mtl.data.augment.parameters import Parameters
from pancreas_mtl.types import UNKNOWN, Label, Triple, TripleMm

HALF = 0.5 + 1e-5
"""More than this share of a voxel's neighbours decides; a half does not, whatever its rounding."""


def voxel_matrices(parameters: Parameters, spacing_mm: TripleMm, axes: Triple) -> Tensor:
    """Where each output voxel comes from: offsets from the patch's centre, in voxels.

    In millimetres a rotation vector along D turns H towards W, one along H turns W towards D, and
    one along W turns D towards H; a scale above 1 makes what is seen larger.

    Args:
        parameters: of B patches.
        spacing_mm: of the patches.
        axes: 0 marks an axis along which nothing may be interpolated; what would move voxels along
            it is left out.

    Returns:
        (B, 3, 3) float64, output offsets to source offsets; exactly the identity where there is
        nothing to do.
    """
    spacing = torch.tensor(spacing_mm, dtype=torch.float64)
    free = torch.tensor(axes, dtype=torch.bool)
    turning = torch.stack([free.roll(-1 - axis)[:2].all() for axis in range(3)])
    rotation = torch.linalg.matrix_exp(_cross(parameters.rotation_rad.double() * turning))
    shrink = torch.where(free, 1 / parameters.scale.double()[:, None], 1.0)  # (B, 3)
    return rotation.mT * (shrink * spacing)[:, None] / spacing[:, None]


def _cross(vector: Tensor) -> Tensor:
    """The matrix of the cross product with `vector`, `(B, 3)` to `(B, 3, 3)`."""
    d, h, w = vector.unbind(-1)
    o = torch.zeros_like(d)
    return torch.stack([o, -w, h, w, o, -d, -h, d, o], dim=-1).view(-1, 3, 3)


def transform(
    image: Tensor, mask: Tensor, *, matrix: Tensor, flips: Sequence[bool], size: Triple
) -> tuple[Tensor, Tensor]:
    """Resample or crop one patch about its centre to `size`, then flip it.

    Where `matrix` is the identity the voxels are copied, not interpolated.

    Args:
        image: (1, D, H, W) float32.
        mask: (1, D, H, W) int16.
        matrix: (3, 3), from `voxel_matrices`.
        flips: per axis.
        size: at most (D, H, W).

    Returns:
        Image and mask, (1, *size) each; perhaps views of the input.
    """
    if torch.equal(matrix, torch.eye(3, dtype=matrix.dtype)):
        image, mask = _crop(image, size), _crop(mask, size)
    else:
        image, mask = _resample(image, mask, matrix, size)
    flipped = [axis for axis, flip in enumerate(flips, start=1) if flip]
    return image.flip(flipped), mask.flip(flipped)


def _crop(array: Tensor, size: Triple) -> Tensor:
    for axis, length in enumerate(size, start=1):
        array = array.narrow(axis, (array.shape[axis] - length) // 2, length)
    return array


def _resample(image: Tensor, mask: Tensor, matrix: Tensor, size: Triple) -> tuple[Tensor, Tensor]:
    """Interpolate the image linearly; give the mask the weighted median of its eight neighbours.

    So a label is never invented: the median is a neighbour's, and at the outline of a region it is
    decided by the region's share, not by the nearest voxel alone; on anisotropic grids that leaves
    a quarter less error in both regions than the nearest voxel. UNKNOWN counts as the lowest label.

    Outside, the image is 0 and the mask background, or UNKNOWN if the patch's first voxel is.
    """
    points = _source_points(matrix, image, size)
    values = _interpolate(F.pad(image, [1] * 6), [point + 1 for point in points])
    outside = Label.BACKGROUND if mask[0, 0, 0, 0] >= Label.BACKGROUND else UNKNOWN
    labels = mask.new_full((1, *size), outside)
    inside = _bounding_box(mask[0] != outside)
    near = _reached(inside, matrix, image.shape[1:], size)
    if near is not None:
        framed = F.pad(mask[0][inside], [1] * 6, value=outside)
        levels = torch.stack([framed >= label for label in Label]).float()
        starts = [one.start - 1 for one in inside]
        local = [point[near] - start for point, start in zip(points, starts, strict=True)]
        at_least = _interpolate(levels, local) > HALF
        labels[0][near] = at_least.sum(0, dtype=mask.dtype) - 1
    return values, labels


def _source_points(matrix: Tensor, source: Tensor, size: Triple) -> list[Tensor]:
    """Where each output voxel comes from: its coordinates along D, H and W, (*size) each."""
    offsets = [torch.arange(n, device=source.device) - (n - 1) / 2 for n in size]
    points = []
    for (along_d, along_h, along_w), n in zip(matrix.tolist(), source.shape[1:], strict=True):
        d, h, w = (one * by for one, by in zip(offsets, (along_d, along_h, along_w), strict=True))
        plane = (d + (n - 1) / 2)[:, None] + h
        points.append(plane[:, :, None] + w)
    return points


def _interpolate(source: Tensor, points: Sequence[Tensor]) -> Tensor:
    """Linear interpolation (C, *size) of (C, D, H, W) at points; beyond the border it repeats.

    D and H are laid out as one axis, so that two planar interpolations, in the slices before and
    behind, do: torch's planar `grid_sample` is vectorised on a CPU, the one in space is not. Every
    slice has to end as the next one begins, as in a frame of outside.
    """
    channels, *shape = source.shape
    d, h, w = (point.clamp(0, n - 1) for point, n in zip(points, shape, strict=True))
    before = d.floor().clamp_(max=shape[0] - 2)
    rows, width = shape[0] * shape[1], shape[2]
    grid = torch.stack([w, before * shape[1] + h], dim=-1).flatten(0, 1)[None]
    grid *= 2 / torch.tensor([width - 1, rows - 1], dtype=grid.dtype, device=grid.device)
    grid -= 1
    step = torch.tensor([0.0, 2 * shape[1] / (rows - 1)], device=grid.device)
    flat = source.reshape(1, channels, rows, width)
    first, second = (
        F.grid_sample(flat, at, padding_mode="border", align_corners=True).view(channels, *d.shape)
        for at in (grid, grid + step)
    )
    return torch.lerp(first, second, d - before)


def _bounding_box(inside: Tensor) -> tuple[slice, ...]:
    """Of a mask (D, H, W); empty slices where it is empty."""
    planes = inside.any(2)
    ends = [
        where.nonzero().flatten()[[0, -1]].tolist() if where.any() else [0, -1]
        for where in (planes.any(1), planes.any(0), inside.any(0).any(0))
    ]
    return tuple(slice(first, last + 1) for first, last in ends)


def _reached(
    box: Sequence[slice], matrix: Tensor, source: Sequence[int], size: Triple
) -> tuple[slice, ...] | None:
    """The output voxels that a box of the source, and one voxel around it, may reach; if any."""
    ends = [
        torch.tensor([one.start - 1, one.stop], dtype=matrix.dtype) - (n - 1) / 2
        for one, n in zip(box, source, strict=True)
    ]
    corners = torch.cartesian_prod(*ends) @ torch.linalg.inv(matrix).mT  # (8, 3)
    centre = (torch.tensor(size, dtype=matrix.dtype) - 1) / 2
    low, high = corners.amin(0) + centre, corners.amax(0) + centre
    near = [
        slice(max(0, math.floor(a)), min(n, math.ceil(b) + 1))
        for a, b, n in zip(low.tolist(), high.tolist(), size, strict=True)
    ]
    is_empty = any(one.start >= one.stop for one in (*box, *near))
    return None if is_empty else tuple(near)
