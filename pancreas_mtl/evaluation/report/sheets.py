"""A CT as one JPEG of all its slices, which browsers decode, and the header of a NIfTI file.

It is quantised to 256 levels within QUANTISED_HU: for looking at, not for measuring.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
from PIL import Image

from pancreas_mtl.types import FloatArray, Triple, TripleMm

QUANTISED_HU = (-200.0, 312.0)  # 2 HU a level; every window of the viewer lies within
CT_QUALITIES = (92, 80, 70, 60, 50)  # tried in turn; where none is enough, voxels are averaged
MAX_CT_VOXELS = 12_000_000  # what a phone's browser still draws on one canvas


@dataclass(frozen=True)
class Sheet:
    """A CT as tiles in a JPEG: slice `d` is tile `d % columns` of row `d // columns`.

    `header` is the base64 of the 352 bytes that make a NIfTI file with the voxels behind them.
    """

    header: str
    jpeg: str  # base64
    shape: Triple  # (D, H, W)
    tile: tuple[int, int]  # height and width, multiples of 8 so that no JPEG block spans two
    columns: int
    spacing_mm: TripleMm


def pack_ct(image_hu: FloatArray, spacing_mm: TripleMm, *, max_bytes: int) -> Sheet:
    """Quantise a CT `(D, H, W)` and lay its slices out as tiles of one JPEG.

    The best quality that fits `max_bytes` is taken, at full resolution if one fits.
    """
    for factors in reductions(image_hu.shape, spacing_mm):
        levels = quantise(block_mean(image_hu, factors))
        tiled, tile, columns = tiles(levels)
        for quality in CT_QUALITIES:
            packed = jpeg(tiled, quality)
            if len(packed) <= max_bytes:
                header = _ct_header(levels.shape, spacing_mm, factors)
                d, h, w = (mm * factor for mm, factor in zip(spacing_mm, factors, strict=True))
                return Sheet(header, base64_text(packed), levels.shape, tile, columns, (d, h, w))
    raise AssertionError("a single voxel is small enough")


def tiles(levels: npt.NDArray[np.uint8]) -> tuple[npt.NDArray[np.uint8], tuple[int, int], int]:
    """Lay slices `(D, H, W)` out in a nearly square grid; also the tile's size, and the columns."""
    depth, height, width = levels.shape
    tile = (-(-height // 8) * 8, -(-width // 8) * 8)
    columns = max(1, min(depth, round(math.sqrt(depth * tile[0] / tile[1]))))
    rows = -(-depth // columns)
    padding = ((0, rows * columns - depth), (0, tile[0] - height), (0, tile[1] - width))
    padded = np.pad(levels, padding, mode="edge").reshape(rows, columns, *tile)
    return padded.transpose(0, 2, 1, 3).reshape(rows * tile[0], columns * tile[1]), tile, columns


def _ct_header(shape: Sequence[int], spacing_mm: TripleMm, factors: Triple) -> str:
    header = nifti_header(shape, spacing_mm, factors)
    low, high = QUANTISED_HU
    step = (high - low) / 256
    header.set_slope_inter(step, low + step / 2)  # a level stands for the middle of its range
    return base64_text(header.binaryblock + bytes(4))  # four zeros: no extensions


def quantise(image_hu: FloatArray) -> npt.NDArray[np.uint8]:
    """Map QUANTISED_HU linearly to 0..255; what lies outside takes the nearest end."""
    low, high = QUANTISED_HU
    levels = np.floor((image_hu - low) * (256 / (high - low)))
    return np.clip(levels, 0, 255).astype(np.uint8)


def reductions(shape: Sequence[int], spacing_mm: TripleMm) -> Iterator[Triple]:
    """How many voxels to average on each axis, ever more; rows and columns alike, D where finer."""
    through, within = 1, 1
    while True:
        factors = (through, within, within)
        sizes = [-(-size // factor) for size, factor in zip(shape, factors, strict=True)]
        if math.prod(sizes) <= MAX_CT_VOXELS:
            yield factors
        if spacing_mm[0] * through < 1.5 * spacing_mm[1] * within:
            through += 1
        else:
            within += 1


def block_mean(array: FloatArray, factors: Triple) -> FloatArray:
    """Average blocks of voxels; the last ones are filled up with their edge."""
    if factors == (1, 1, 1):
        return array
    padding = [(0, -n % f) for n, f in zip(array.shape, factors, strict=True)]
    padded = np.pad(array, padding, mode="edge")
    (a, f), (b, g), (c, h) = ((n // f, f) for n, f in zip(padded.shape, factors, strict=True))
    return padded.reshape(a, f, b, g, c, h).mean(axis=(1, 3, 5))


def nifti_header(shape: Sequence[int], spacing_mm: TripleMm, factors: Triple = (1, 1, 1)) -> Any:
    """A header of uint8 voxels (W, H, D) in an upright frame: Left, Posterior, Superior.

    Args:
        shape: of what is stored, (D, H, W).
        spacing_mm: before voxels were averaged, (D, H, W).
        factors: how many were, on each axis.
    """
    affine = np.eye(4)
    sizes_mm = [mm * factor for mm, factor in zip(spacing_mm, factors, strict=True)]
    for axis, sign in enumerate((-1, -1, 1)):  # of (W, H, D) in NIfTI's Right, Anterior, Superior
        affine[axis, axis] = sign * sizes_mm[2 - axis]
        affine[axis, 3] = sign * (sizes_mm[2 - axis] - spacing_mm[2 - axis]) / 2
    header = nib.Nifti1Header()
    header.set_data_dtype(np.uint8)
    header.set_data_shape(tuple(reversed(shape)))
    header.set_zooms(tuple(reversed(sizes_mm)))
    header.set_sform(affine, code="scanner")
    header.set_xyzt_units("mm")
    header["magic"], header["vox_offset"] = b"n+1", 352
    return header


def jpeg(pixels: npt.NDArray[np.uint8], quality: int) -> bytes:
    """Encode grey or RGB pixels."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality, optimize=True)
    return buffer.getvalue()


def base64_text(data: bytes) -> str:
    """Bytes as text that HTML can hold."""
    return base64.b64encode(data).decode("ascii")
