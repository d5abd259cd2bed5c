"""Turns, scales, crops and flips image and mask together, by one interpolation at most."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from pancreas_mtl.data.augment.parameters import Parameters
from pancreas_mtl.types import UNKNOWN, Label, Triple, TripleMm

HALF = 0.5 + 1e-5
"""More than this share of a voxel's neighbours decides; a half does not, whatever its rounding."""

SLAB = 8
"""Slices that are interpolated at a time."""


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
    offsets = [torch.arange(n, device=image.device) - (n - 1) / 2 for n in size]
    centre = [(n - 1) / 2 for n in image.shape[1:]]
    values = _interpolate(image, image.new_zeros(1), matrix, offsets, centre)
    outside = Label.BACKGROUND if mask[0, 0, 0, 0] >= Label.BACKGROUND else UNKNOWN
    labels = mask.new_full((1, *size), outside)
    inside = _bounding_box(mask[0] != outside)
    near = _reached(inside, matrix, image.shape[1:], size)
    if near is not None:
        known = mask[0][inside]
        lowest = min(int(known.amin()), outside)
        higher = torch.arange(lowest + 1, max(Label) + 1, device=mask.device)
        some = [one[part] for one, part in zip(offsets, near, strict=True)]
        moved = [c - part.start for c, part in zip(centre, inside, strict=True)]
        levels = known >= higher[:, None, None, None]
        shares = _interpolate(levels, outside >= higher, matrix, some, moved)
        labels[0][near] = (shares > HALF).sum(0, dtype=mask.dtype) + lowest
    return values, labels


def _interpolate(
    source: Tensor,
    outside: Tensor,
    matrix: Tensor,
    offsets: Sequence[Tensor],
    centre: Sequence[float],
) -> Tensor:
    """Interpolate linearly at `matrix` times each offset from `centre`.

    A few slices at a time, as what is in the processor's cache takes a third of the time.

    Args:
        source: (C, D, H, W).
        outside: (C,), what lies around it.
        matrix: (3, 3).
        offsets: along D, H and W.
        centre: where in the source an offset of 0 lies.

    Returns:
        (C, ...) float32, with the offsets' lengths.
    """
    rows, framed = _rows(source, outside)
    found = rows.new_empty(len(source), *map(len, offsets))
    depth, *plane = offsets
    for first in range(0, len(depth), SLAB):
        slab = slice(first, first + SLAB)
        points = _points(matrix, [depth[slab], *plane], [c + 1 for c in centre])
        found[:, slab] = _between_slices(rows, framed, points)
    return found


def _rows(source: Tensor, outside: Tensor) -> tuple[Tensor, list[int]]:
    """(1, C, rows, W) float32: a source in a frame of outside, D and H laid out as one axis.

    In the frame, of which the shape is returned too, a slice ends as the next one begins. Rows are
    added until there are a power of two and one: then `grid_sample` can scale coordinates back
    without rounding them, and in the quiz's patch a row is found to within a thousandth of a voxel,
    float32's precision, instead of two.
    """
    depth, height, width = framed = [n + 2 for n in source.shape[1:]]
    count = depth * height
    size = (len(source), 2 ** (count - 2).bit_length() + 1, width)
    rows = outside.float()[:, None, None].expand(size).contiguous()
    rows[:, :count].unflatten(1, (depth, height))[:, 1:-1, 1:-1, 1:-1] = source
    return rows[None], framed


def _points(matrix: Tensor, offsets: Sequence[Tensor], centre: Sequence[float]) -> Iterator[Tensor]:
    """The coordinates along D, H and W of where each voxel comes from."""
    for row, start in zip(matrix.tolist(), centre, strict=True):
        d, h, w = (one * by for one, by in zip(offsets, row, strict=True))
        yield ((d + start)[:, None] + h)[:, :, None] + w


def _between_slices(rows: Tensor, shape: Sequence[int], points: Iterable[Tensor]) -> Tensor:
    """Two planar interpolations, in the slices before and behind each point, and one between them.

    On a CPU torch's planar `grid_sample` is vectorised, that in space is not.

    Args:
        rows: (1, C, rows, W), from `_rows`.
        shape: of what they were, (D, H, W).
        points: coordinates along D, H and W.
    """
    d, h, w = (point.clamp_(0, n - 1) for point, n in zip(points, shape, strict=True))
    before = d.floor().clamp_(max=shape[0] - 2)
    d -= before
    per_row, per_column = (2 / (n - 1) for n in rows.shape[2:])
    row = h.add_(before, alpha=shape[1]).mul_(per_row).sub_(1)
    column = w.mul_(per_column).sub_(1)
    pairs = torch.view_as_real(torch.complex(column, row))  # a stack, five times as fast
    grid = pairs.flatten(0, 1)[None]
    first = F.grid_sample(rows, grid, padding_mode="border", align_corners=True)
    grid[..., 1] += shape[1] * per_row  # one slice on
    second = F.grid_sample(rows, grid, padding_mode="border", align_corners=True)
    return torch.lerp(first[0], second[0], d.flatten(0, 1)).unflatten(1, d.shape[:2])


def _bounding_box(inside: Tensor) -> tuple[slice, ...]:
    """Of a mask (D, H, W); empty slices where it is empty."""
    inside = inside.view(torch.uint8)  # of which `amax` is four times as fast as `any`
    planes = inside.amax(2)
    ends = [
        where.nonzero().flatten()[[0, -1]].tolist() if where.any() else [0, -1]
        for where in (planes.amax(1), planes.amax(0), inside.amax(0).amax(0))
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
