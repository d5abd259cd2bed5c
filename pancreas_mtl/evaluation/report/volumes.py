"""The volumes and pictures of one case, packed small enough to live inside the page.

The CT is cropped to the neighbourhood of its masks, quantised to 256 levels within QUANTISED_HU and
stored as one JPEG of all its slices, which browsers decode natively; it is for looking at, not for
measuring. Masks are stored exactly, as gzipped NIfTI, and so are pooling weights in steps of
WEIGHT_STEP. All volumes of a case share one upright frame, without the obliqueness of the scan.
"""

from __future__ import annotations

import base64
import gzip
import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from pancreas_mtl.data.images import grid_difference, read_image, read_mask
from pancreas_mtl.errors import CaseError
from pancreas_mtl.inference.pictures import Box, centre, mosaic, neighbourhood
from pancreas_mtl.types import FloatArray, LabelArray, Triple, TripleMm, Volume

QUANTISED_HU = (-200.0, 312.0)  # 2 HU a level; every window of the viewer lies within
MARGIN_MM = 20.0
MAX_CT_BYTES = 300_000  # a case: 72 of them leave room for all else within 40 MB
CT_QUALITIES = (92, 80, 70, 60, 50)  # tried in turn; where none is enough, voxels are averaged
MAX_CT_VOXELS = 12_000_000  # what a phone's browser still draws on one canvas
PICTURE_QUALITY = 75
THUMBNAIL_PX = 132  # shown at half of it, sharp on fine displays
WEIGHT_STEP = 8


@dataclass(frozen=True)
class Overlay:
    """What one run says about a case; `link` is the case's row in the report."""

    link: str
    prediction: Path | None
    attention: Path | None
    title: str


@dataclass(frozen=True)
class CaseSource:
    """A case's files, and those of all runs that answered it."""

    name: str
    image: Path
    reference: Path | None
    overlays: tuple[Overlay, ...]


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


@dataclass(frozen=True)
class PackedOverlay:
    """Base64 of gzipped NIfTI masks, of a JPEG mosaic and of a small JPEG."""

    link: str
    prediction: str | None
    attention: str | None
    picture: str
    thumbnail: str


@dataclass(frozen=True)
class PackedCase:
    """All that the page shows of one case."""

    name: str
    ct: Sheet
    reference: str | None
    focus: tuple[float, float, float]  # the lesion's centre: shares of the way Right, Front, Up
    overlays: tuple[PackedOverlay, ...]


def pack_case(source: CaseSource) -> PackedCase:
    """Read, crop and pack a case; it is cropped alike for all runs.

    Raises:
        CaseError: a file cannot be read, or a mask is not on the image's grid.
    """
    image = read_image(source.image, warn=_ignore)
    reference = _labels(source.reference, image)
    predictions = [_labels(overlay.prediction, image) for overlay in source.overlays]
    nothing = np.zeros(image.array.shape, np.uint8)
    masks = [mask for mask in (reference, *predictions) if mask is not None] or [nothing]
    box = neighbourhood(masks, image.spacing_mm, margin_mm=MARGIN_MM)
    overlays = [
        _pack_overlay(overlay, mask, reference, image, box)
        for overlay, mask in zip(source.overlays, predictions, strict=True)
    ]
    return PackedCase(
        name=source.name,
        ct=pack_ct(image.array[box], image.spacing_mm),
        reference=None if reference is None else _nifti_gz(reference[box], image.spacing_mm),
        focus=_focus(centre(masks), box),
        overlays=tuple(overlays),
    )


def _focus(at: Triple, box: Box) -> tuple[float, float, float]:
    d, h, w = (
        (voxel - cut.start + 0.5) / (cut.stop - cut.start)
        for voxel, cut in zip(at, box, strict=True)
    )
    return 1 - w, 1 - h, d


def _pack_overlay(
    overlay: Overlay,
    mask: LabelArray | None,
    reference: LabelArray | None,
    image: Volume,
    box: Box,
) -> PackedOverlay:
    drawn = np.zeros(image.array.shape, np.uint8) if mask is None else mask
    figure = mosaic(image.array, drawn, image.spacing_mm, reference=reference, title=overlay.title)
    picture, thumbnail = _picture_and_thumbnail(figure)
    weights = _weights(overlay.attention, image)
    return PackedOverlay(
        link=overlay.link,
        prediction=None if mask is None else _nifti_gz(mask[box], image.spacing_mm),
        attention=None if weights is None else _nifti_gz(weights[box], image.spacing_mm),
        picture=picture,
        thumbnail=thumbnail,
    )


def _labels(path: Path | None, image: Volume) -> LabelArray | None:
    if path is None:
        return None
    return read_mask(path, grid=image.source).array


def _weights(path: Path | None, image: Volume) -> npt.NDArray[np.uint8] | None:
    """Pooling weights, 0 to 255, on the image's grid."""
    if path is None:
        return None
    weights = read_image(path)
    if problem := grid_difference(weights.source, image.source):
        raise CaseError(f"{path} is not on its image's grid ({problem}): predict the case again")
    return np.clip(weights.array, 0, 255).astype(np.uint8) // WEIGHT_STEP * WEIGHT_STEP


def pack_ct(image_hu: FloatArray, spacing_mm: TripleMm) -> Sheet:
    """Quantise a CT `(D, H, W)` and lay its slices out as tiles of one JPEG.

    The best quality that fits MAX_CT_BYTES is taken, at full resolution if one fits.
    """
    for factors in reductions(image_hu.shape, spacing_mm):
        levels = quantise(_block_mean(image_hu, factors))
        tiled, tile, columns = tiles(levels)
        for quality in CT_QUALITIES:
            jpeg = _jpeg(tiled, quality)
            if len(jpeg) <= MAX_CT_BYTES:
                header = _ct_header(levels.shape, spacing_mm, factors)
                coarse = _triple_mm(mm * f for mm, f in zip(spacing_mm, factors, strict=True))
                return Sheet(header, _base64(jpeg), levels.shape, tile, columns, coarse)
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
    pairs = list(zip(spacing_mm, factors, strict=True))
    offset_mm = [mm * (factor - 1) / 2 for mm, factor in pairs]
    header = nifti_header(shape, _triple_mm(mm * factor for mm, factor in pairs), offset_mm)
    low, high = QUANTISED_HU
    step = (high - low) / 256
    header.set_slope_inter(step, low + step / 2)  # a level stands for the middle of its range
    return _base64(header.binaryblock + bytes(4))  # four zeros: no extensions


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


def _block_mean(array: FloatArray, factors: Triple) -> FloatArray:
    if factors == (1, 1, 1):
        return array
    padding = [(0, -n % f) for n, f in zip(array.shape, factors, strict=True)]
    padded = np.pad(array, padding, mode="edge")
    (a, f), (b, g), (c, h) = ((n // f, f) for n, f in zip(padded.shape, factors, strict=True))
    return padded.reshape(a, f, b, g, c, h).mean(axis=(1, 3, 5))


def nifti_header(
    shape: Sequence[int], spacing_mm: TripleMm, offset_mm: Sequence[float] = (0.0, 0.0, 0.0)
) -> Any:
    """A header of uint8 voxels (W, H, D) in an upright frame: Left, Posterior, Superior."""
    signs = (-1, -1, 1)  # the axes (W, H, D) in NIfTI's Right, Anterior, Superior
    affine = np.eye(4)
    for axis, (sign, mm, offset) in enumerate(
        zip(signs, reversed(spacing_mm), reversed(offset_mm), strict=True)
    ):
        affine[axis, axis], affine[axis, 3] = sign * mm, sign * offset
    header = nib.Nifti1Header()
    header.set_data_dtype(np.uint8)
    header.set_data_shape(tuple(reversed(shape)))
    header.set_zooms(tuple(reversed(spacing_mm)))
    header.set_sform(affine, code="scanner")
    header.set_xyzt_units("mm")
    header["magic"], header["vox_offset"] = b"n+1", 352
    return header


def _nifti_gz(array: npt.NDArray[np.uint8], spacing_mm: TripleMm) -> str:
    block = nifti_header(array.shape, spacing_mm).binaryblock + bytes(4)
    return _base64(gzip.compress(block + array.tobytes(), compresslevel=6, mtime=0))


def _picture_and_thumbnail(figure: Figure) -> tuple[str, str]:
    """A drawn mosaic, and its axial panel made small."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba())[..., :3]
    left, bottom, right, top = (round(at) for at in figure.axes[0].get_window_extent().extents)
    panel = Image.fromarray(pixels[len(pixels) - top : len(pixels) - bottom, left:right])
    panel.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX))
    images = (pixels, np.asarray(panel))
    picture, thumbnail = (_base64(_jpeg(image, PICTURE_QUALITY)) for image in images)
    return picture, thumbnail


def _jpeg(pixels: npt.NDArray[np.uint8], quality: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality, optimize=True)
    return buffer.getvalue()


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _triple_mm(values: Any) -> TripleMm:
    d, h, w = values
    return d, h, w


def _ignore(message: str) -> None:
    """The audit and the prediction have said it already."""
