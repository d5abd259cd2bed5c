"""Resampling between grids that share orientation and corners: one small matrix per axis.

Spline interpolation is linear and separable, so along one axis it is a matrix, and that matrix is
what scipy answers to the unit impulses. Multiplying by it gives scipy's result (to float32
rounding) at the speed of a matrix product. Voxel centres are aligned as in `skimage.transform.
resize` and `scipy.ndimage.zoom(grid_mode=True, mode="nearest")`, which nnU-Net uses.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from pancreas_mtl.types import NUM_LABELS, FloatArray, LabelArray, Triple, TripleMm

ANISOTROPY_THRESHOLD = 3.0
"""An axis this many times coarser than the finest is resampled apart, as in nnU-Net."""


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
        matrix = np.stack(columns, axis=1).astype(np.float32)
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
    the smaller label. `labels` holds values of `Label`.
    """
    linear: Triple = (min(orders[0], 1), min(orders[1], 1), min(orders[2], 1))
    best = np.zeros(shape, dtype=np.uint8)
    best_share = resample((labels == 0).astype(np.float32), shape, orders=linear)
    for label in range(1, NUM_LABELS):
        if not (labels == label).any():
            continue
        share = resample((labels == label).astype(np.float32), shape, orders=linear)
        wins = share > best_share
        best[wins] = label
        np.maximum(best_share, share, out=best_share)
    return best
