"""Resampling between grids that share orientation and corners: one small matrix per axis.

Spline interpolation is linear and separable, so along one axis it is a matrix, and that matrix is
what scipy answers to the unit impulses. Multiplying by it gives scipy's result (to float32
rounding) at the speed of a matrix product. Voxel centres are aligned as in `skimage.transform.
resize` and `scipy.ndimage.zoom(grid_mode=True, mode="nearest")`, which nnU-Net uses.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from pancreas_mtl.types import NUM_LABELS, FloatArray, LabelArray, Triple, TripleMm

ANISOTROPY_THRESHOLD = 3.0
"""An axis this many times coarser than the finest is resampled apart, as in nnU-Net."""

NOTHING = 1e-12
"""A weight below this changes no float32 sum of which the weights are 1 in all."""


def target_shape(shape: Triple, spacing_mm: TripleMm, new_spacing_mm: TripleMm) -> Triple:
    """The shape that covers the same extent at another spacing; at least one voxel per axis."""
    d, h, w = (
        max(1, round(n * old / new))
        for n, old, new in zip(shape, spacing_mm, new_spacing_mm, strict=True)
    )
    return d, h, w


def spline_orders(spacing_mm: TripleMm, new_spacing_mm: TripleMm, *, order: int) -> Triple:
    """The spline order per axis: nearest (0) along a strongly anisotropic axis, else `order`.

    As nnU-Net decides: the old spacing is asked first, then the new; two equally coarse axes mean
    that none is treated apart.
    """
    orders = [order, order, order]
    for spacing in (spacing_mm, new_spacing_mm):
        if max(spacing) / min(spacing) > ANISOTROPY_THRESHOLD:
            coarse = [axis for axis in range(3) if spacing[axis] == max(spacing)]
            if len(coarse) == 1:
                orders[coarse[0]] = 0
            break
    return orders[0], orders[1], orders[2]


@lru_cache(maxsize=512)
def interpolation_matrix(n_in: int, n_out: int, order: int) -> FloatArray:
    """The `(n_out, n_in)` matrix that interpolates one axis with a spline of `order` 0, 1 or 3."""
    if order == 0:
        centres = (np.arange(n_out) + 0.5) * n_in / n_out - 0.5
        nearest = np.clip(np.floor(centres + 0.5).astype(int), 0, n_in - 1)
        matrix = np.eye(n_in, dtype=np.float32)[nearest]
    elif n_in == n_out:
        matrix = np.eye(n_in, dtype=np.float32)
    else:
        impulses = np.eye(n_in)
        columns = [
            ndimage.zoom(row, n_out / n_in, order=order, mode="nearest", grid_mode=True)
            for row in impulses
        ]
        matrix = np.stack(columns, axis=1)
        matrix[np.abs(matrix) < NOTHING] = 0  # or products with denormal numbers take ten times
        matrix = matrix.astype(np.float32)
    matrix.flags.writeable = False
    return matrix


def apply_matrix(matrix: FloatArray, array: FloatArray, axis: int) -> FloatArray:
    """Multiply `array` by `(n_out, n_in)` along one of its last three axes."""
    if matrix.shape[0] == matrix.shape[1] and np.array_equal(matrix, np.eye(len(matrix))):
        return array
    axis %= array.ndim
    lead = int(np.prod(array.shape[:axis]))
    tail = int(np.prod(array.shape[axis + 1 :]))
    flat = array.reshape(lead, array.shape[axis], tail)
    out = flat[:, :, 0] @ matrix.T if tail == 1 else np.matmul(matrix, flat)
    return out.reshape(*array.shape[:axis], matrix.shape[0], *array.shape[axis + 1 :])


def resample(array: npt.NDArray[np.floating], shape: Triple, *, orders: Triple) -> FloatArray:
    """Resample the last three axes to `shape`, `(..., D, H, W)` float32.

    The values stay within the input's range, as in `skimage.transform.resize(clip=True)`: that of
    the volume, or of the slice where an axis is resampled apart (order 0), as in nnU-Net.
    """
    sizes = array.shape[-3:]
    out = np.ascontiguousarray(array, dtype=np.float32)
    del array  # a temporary of the caller's then goes as soon as the first axis is done
    apart = [axis for axis in range(3) if orders[axis] == 0]
    for axis in apart:
        if sizes[axis] != shape[axis]:
            nearest = interpolation_matrix(sizes[axis], shape[axis], 0).argmax(axis=1)
            out = out.take(nearest, axis=axis - 3)
    within = tuple(axis - 3 for axis in range(3) if axis not in apart)
    low, high = out.min(axis=within, keepdims=True), out.max(axis=within, keepdims=True)
    for axis in sorted(within, key=lambda axis: shape[axis] / sizes[axis]):  # shrink first
        out = apply_matrix(interpolation_matrix(sizes[axis], shape[axis], orders[axis]), out, axis)
    if max(orders) > 1 and tuple(shape) != tuple(sizes):
        np.clip(out, low, high, out=out)
    return out


def resample_labels(labels: LabelArray, shape: Triple, *, orders: Triple) -> LabelArray:
    """Resample a mask without inventing labels: the label with the largest interpolated share.

    Each label's indicator is interpolated (at most linearly) and the largest wins; a tie goes to
    the smaller label. `labels` holds values of `Label`. Nothing is computed where no voxel of
    pancreas or lesion reaches.
    """
    best = np.zeros(shape, dtype=np.uint8)
    foreground = ndimage.find_objects((labels > 0).view(np.uint8))
    if not foreground:
        return best
    here, there, matrices = [], [], []
    for axis in range(3):
        matrix = interpolation_matrix(labels.shape[axis], shape[axis], min(orders[axis], 1))
        rows = _used(matrix[:, foreground[0][axis]], axis=0)
        if not rows.stop:  # too little to be left on a coarser grid
            return best
        columns = _used(matrix[rows], axis=1)
        here.append(columns)
        there.append(rows)
        matrices.append(matrix[rows, columns])
    part = labels[tuple(here)]
    shares = [_interpolated(part == label, matrices) for label in range(NUM_LABELS)]
    best[tuple(there)] = np.argmax(shares, axis=0)
    return best


def _interpolated(indicator: npt.NDArray[np.bool_], matrices: Sequence[FloatArray]) -> FloatArray:
    """An indicator times a matrix per axis; first those that shrink it most."""
    out: FloatArray = indicator.astype(np.float32)
    for axis in sorted(range(3), key=lambda axis: np.divide(*matrices[axis].shape)):
        out = apply_matrix(matrices[axis], out, axis)
    return out


def _used(matrix: FloatArray, *, axis: int) -> slice:
    """From the first to the last row (axis 0) or column (axis 1) with a weight."""
    used = np.flatnonzero(matrix.any(axis=1 - axis))
    return slice(int(used[0]), int(used[-1]) + 1) if len(used) else slice(0, 0)
