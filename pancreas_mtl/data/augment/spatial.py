"""Turns, scales, crops and flips image and mask together, by one interpolation at most."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from pancreas_mtl.data.augment.parameters import Parameters
from pancreas_mtl.types import NUM_LABELS, Label, Triple, TripleMm


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
    """
    source = _levels_in_frame(image, mask)
    grid = _sampling_grid(matrix, size, source)
    # In the frame every value is the outside's, so "border" repeats it beyond the frame.
    values = F.grid_sample(source[None], grid, padding_mode="border", align_corners=False)[0]
    labels = (values[1:] > 0.5).sum(0, keepdim=True, dtype=mask.dtype) - 1
    return values[:1], labels


def _levels_in_frame(image: Tensor, mask: Tensor) -> Tensor:
    """The image, and where the label is at least 0, 1, 2, in a frame of one voxel of outside.

    Outside, the image is 0 and the mask background, or UNKNOWN if the patch's first voxel is.

    Returns:
        (1 + C, D + 2, H + 2, W + 2) float32.
    """
    source = image.new_zeros(1 + NUM_LABELS, *(n + 2 for n in image.shape[1:]))
    source[1] = mask[0, 0, 0, 0] >= Label.BACKGROUND
    inside = source[:, 1:-1, 1:-1, 1:-1]
    inside[0] = image[0]
    for label in Label:
        inside[1 + label] = mask[0] >= label
    return source


def _sampling_grid(matrix: Tensor, size: Triple, source: Tensor) -> Tensor:
    """`matrix` as a grid for `grid_sample`, (1, *size, 3): (W, H, D) from -1 to 1 edge to edge."""
    half_size = torch.tensor(source.shape[1:]) / 2
    scaled = (matrix / half_size[:, None]).flip(0).float().to(source.device)
    d, h, w = (
        (torch.arange(n, device=source.device) - (n - 1) / 2)[:, None] * scaled[:, axis]
        for axis, n in enumerate(size)
    )
    return (d[:, None, None] + h[:, None] + w)[None]
