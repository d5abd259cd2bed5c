"""The volumes and pictures of one case, packed small enough to live inside the page.

Everything is cropped to the neighbourhood of the masks. The CT becomes a JPEG (see `sheets`), masks
are stored exactly, as gzipped NIfTI, and so are pooling weights, averaged over blocks of voxels and
in steps of WEIGHT_STEP. All volumes of a case share one upright frame, without the obliqueness of
the scan.
"""

from __future__ import annotations

import gzip
import math
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from pancreas_mtl.data.images import grid_difference, read_image, read_mask
from pancreas_mtl.errors import CaseError
from pancreas_mtl.evaluation.report.sheets import (
    Sheet,
    base64_text,
    block_mean,
    jpeg,
    nifti_header,
    pack_ct,
    reductions,
)
from pancreas_mtl.inference.pictures import Box, centre, mosaic, neighbourhood
from pancreas_mtl.types import LabelArray, Triple, TripleMm, Volume

MARGIN_MM = 20.0
PICTURE_QUALITY = 75
PICTURE_SCALES = (1.0, 0.8, 0.65, 0.5, 0.4)  # tried in turn
THUMBNAIL_PX = 132  # shown at half of it, sharp on fine displays
MIN_WEIGHT_BLOCK = 4  # voxels of the image that share a weight, such as 1 x 2 x 2
MAX_WEIGHT_VOXELS = 300_000
WEIGHT_STEP = 8

# Bytes before base64, which makes 4 of 3. A page of 72 cases stays below 40 MB, whether one run
# answered them or the four variants and their ensemble did: a test makes such a page.
VOLUMES_BYTES = 26_000_000
PICTURES_BYTES = 8_000_000  # of these
MAX_PICTURE_BYTES = 60_000
ROW_BYTES = 4_000  # of these, what the page says of an answer: its row, and its dots in charts
CT_BYTES = (40_000, 300_000)  # least and most


class Budget(NamedTuple):
    """How many bytes a case may take, of which each picture."""

    case_bytes: int
    picture_bytes: int


def share_out(num_cases: int, num_answers: int) -> Budget:
    """Share the page out among cases, and the answers that all runs give to them."""
    picture = min(MAX_PICTURE_BYTES, PICTURES_BYTES // max(1, num_answers))
    rest = VOLUMES_BYTES - num_answers * ROW_BYTES
    return Budget(max(0, rest) // max(1, num_cases), picture)


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
class PackedOverlay:
    """Base64 of gzipped NIfTI masks, of a JPEG mosaic and of a small JPEG."""

    link: str
    prediction: str | None
    attention: str | None
    picture: str
    thumbnail: str

    def texts(self) -> tuple[str | None, ...]:
        """All that it puts into the page."""
        return self.prediction, self.attention, self.picture, self.thumbnail


@dataclass(frozen=True)
class PackedCase:
    """All that the page shows of one case."""

    name: str
    ct: Sheet
    reference: str | None
    focus: tuple[float, float, float]  # the lesion's centre: shares of the way Right, Front, Up
    overlays: tuple[PackedOverlay, ...]


def pack_case(source: CaseSource, budget: Budget) -> PackedCase:
    """Read, crop and pack a case; it is cropped alike for all runs.

    The CT gets what masks and pictures leave of the budget, within CT_BYTES.

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
        _pack_overlay(overlay, mask, reference, image, box, budget.picture_bytes)
        for overlay, mask in zip(source.overlays, predictions, strict=True)
    ]
    packed_reference = None if reference is None else _nifti_gz(reference[box], image.spacing_mm)
    texts = [packed_reference, *(text for overlay in overlays for text in overlay.texts())]
    spent = sum(len(text) for text in texts if text) * 3 // 4
    least, most = CT_BYTES
    ct_bytes = min(most, max(least, budget.case_bytes - spent))
    return PackedCase(
        name=source.name,
        ct=pack_ct(image.array[box], image.spacing_mm, max_bytes=ct_bytes),
        reference=packed_reference,
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
    picture_bytes: int,
) -> PackedOverlay:
    drawn = np.zeros(image.array.shape, np.uint8) if mask is None else mask
    figure = mosaic(image.array, drawn, image.spacing_mm, reference=reference, title=overlay.title)
    picture, thumbnail = _picture_and_thumbnail(figure, picture_bytes)
    return PackedOverlay(
        link=overlay.link,
        prediction=None if mask is None else _nifti_gz(mask[box], image.spacing_mm),
        attention=_weights(overlay.attention, image, box),
        picture=picture,
        thumbnail=thumbnail,
    )


def _labels(path: Path | None, image: Volume) -> LabelArray | None:
    if path is None:
        return None
    return read_mask(path, grid=image.source).array


def _weights(path: Path | None, image: Volume, box: Box) -> str | None:
    """Pooling weights, 0 to 255, which lie on the image's grid."""
    if path is None:
        return None
    weights = read_image(path)
    if problem := grid_difference(weights.source, image.source):
        raise CaseError(f"{path} is not on its image's grid ({problem}): predict the case again")
    fine = np.clip(weights.array[box], 0, 255)
    least = max(MIN_WEIGHT_BLOCK, fine.size / MAX_WEIGHT_VOXELS)
    each = reductions(fine.shape, image.spacing_mm)
    factors = next(f for f in each if math.prod(f) >= least)
    steps = block_mean(fine, factors).astype(np.uint8) // WEIGHT_STEP * WEIGHT_STEP
    return _nifti_gz(steps, image.spacing_mm, factors)


def _nifti_gz(
    array: npt.NDArray[np.uint8], spacing_mm: TripleMm, factors: Triple = (1, 1, 1)
) -> str:
    block = nifti_header(array.shape, spacing_mm, factors).binaryblock + bytes(4)
    return base64_text(gzip.compress(block + array.tobytes(), compresslevel=6, mtime=0))


def _picture_and_thumbnail(figure: Figure, max_bytes: int) -> tuple[str, str]:
    """A drawn mosaic as large as may be, and its axial panel made small."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba())[..., :3]
    left, bottom, right, top = (round(at) for at in figure.axes[0].get_window_extent().extents)
    panel = Image.fromarray(pixels[len(pixels) - top : len(pixels) - bottom, left:right])
    panel.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX))
    picture, whole = b"", Image.fromarray(pixels)
    for scale in PICTURE_SCALES:
        size = round(scale * whole.width), round(scale * whole.height)
        picture = jpeg(np.asarray(whole.resize(size)), PICTURE_QUALITY)
        if len(picture) <= max_bytes:
            break
    return base64_text(picture), base64_text(jpeg(np.asarray(panel), PICTURE_QUALITY))


def _ignore(message: str) -> None:
    """The audit and the prediction have said it already."""
