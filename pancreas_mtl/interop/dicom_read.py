"""A CT series of a DICOM folder becomes a volume in HU, or one line says why not.

Nothing is guessed: the spacing between slices comes from their positions (SliceThickness tells how
thick a slice is, not where the next one lies), and a series that is not an evenly spaced, upright
stack of equal slices is refused with the file or the value that tells so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pydicom
from pydicom.pixels import get_decoder

from pancreas_mtl.data.files import reason
from pancreas_mtl.data.images import (
    GRID_TOLERANCE,
    canonical_shape,
    canonical_spacing_mm,
    check_memory,
    to_source,
)
from pancreas_mtl.data.nifti import MAX_VOXELS, SPACING_LIMITS_MM
from pancreas_mtl.errors import CaseError
from pancreas_mtl.inference.pipeline import Source
from pancreas_mtl.interop.dicom_series import ENHANCED, UIDS, Series, Slice, numbers
from pancreas_mtl.types import FloatArray, SourceGrid, Volume

SAME_MM = 0.01  # slices nearer than this lie at the same position
SAME_VALUE = 1e-4  # between numbers that all slices of a series share
MAX_SHEAR = 0.01  # sideways per mm along the normal: a gantry tilt of 0.6 degrees
_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])  # DICOM's patient axes are LPS


class Stack(NamedTuple):
    """A series whose slices are known to be a regular grid, in the order of their positions."""

    files: list[Path]
    grid: SourceGrid  # axes: column, row, slice


def dicom_source(series: Series) -> Source:
    """The case of a series; what was left out of its folder goes to the record as warnings."""
    return Source(series.name, series.folder, lambda warn: read_series(series, warn))


# Geometry


def stack(series: Series) -> Stack:
    """Sort the slices along their normal and check that they are an evenly spaced, upright stack.

    Raises:
        CaseError: they are not, or a header lacks what is needed.
    """
    for one in series.slices:
        _check_header(one)
    _check_equal(series.slices)
    first = series.slices[0]
    axes = _axes(first)
    normal = np.cross(*axes)
    positions = [np.array(numbers(one, "ImagePositionPatient", 3)) for one in series.slices]
    order = sorted(range(len(positions)), key=lambda index: float(positions[index] @ normal))
    files = [series.slices[index].path for index in order]
    step_mm = _checked_step_mm(np.array([positions[index] for index in order]), normal, files)
    between_rows_mm, between_columns_mm = numbers(first, "PixelSpacing", 2)
    affine = np.eye(4)
    affine[:3, 0] = axes[0] * between_columns_mm
    affine[:3, 1] = axes[1] * between_rows_mm
    affine[:3, 2] = step_mm
    affine[:3, 3] = positions[order[0]]
    shape = (int(first.header.Columns), int(first.header.Rows), len(files))
    grid = SourceGrid(shape, _TO_RAS @ affine)
    _check_size(series.folder, grid)
    return Stack(files, grid)


def _check_header(one: Slice) -> None:
    header = one.header
    if header.SOPClassUID in ENHANCED or (header.get("NumberOfFrames") or 1) > 1:
        raise CaseError(
            f"{one.path} is a multi-frame file, which this does not read: convert it to NIfTI"
        )
    for keyword in UIDS:
        if not header.get(keyword):
            raise CaseError(
                f"{one.path} has an empty {keyword}, as careless anonymisers leave it: "
                "anonymise again, with new UIDs in the place of old ones"
            )
    if header.get("SamplesPerPixel") != 1 or not header.get("Rows") or not header.get("Columns"):
        raise CaseError(f"{one.path} is no grid of single numbers (RGB or such): remove it")


def _check_equal(slices: Sequence[Slice]) -> None:
    """Refuse a series whose slices do not share one grid."""
    first = slices[0]
    for one in slices[1:]:
        for keyword in ("StudyInstanceUID", "FrameOfReferenceUID", "Rows", "Columns"):
            here, there = one.header[keyword].value, first.header[keyword].value
            if here != there:
                raise _mixed(keyword, (one, here), (first, there))
        for keyword, count in (("PixelSpacing", 2), ("ImageOrientationPatient", 6)):
            values, others = numbers(one, keyword, count), numbers(first, keyword, count)
            if not np.allclose(values, others, rtol=0, atol=SAME_VALUE):
                raise _mixed(keyword, (one, values), (first, others))


def _mixed(keyword: str, one: tuple[Slice, Any], other: tuple[Slice, Any]) -> CaseError:
    return CaseError(
        f"{one[0].path} has {keyword} {one[1]}, but {other[0].path.name} has {other[1]}: "
        "give a folder with slices of one kind"
    )


def _axes(one: Slice) -> npt.NDArray[np.float64]:
    """Unit vectors (2, 3) in LPS: from column to column, and from row to row."""
    axes = np.array(numbers(one, "ImageOrientationPatient", 6)).reshape(2, 3)
    if not np.allclose(axes @ axes.T, np.eye(2), atol=1e-3):
        raise CaseError(
            f"{one.path} has an ImageOrientationPatient of {axes.ravel().tolist()}, which is no "
            "rotation: export the series again"
        )
    return axes


def _checked_step_mm(
    positions_mm: npt.NDArray[np.float64], normal: npt.NDArray[np.float64], files: Sequence[Path]
) -> npt.NDArray[np.float64]:
    """The vector from slice to slice of positions (N, 3) sorted along the normal."""
    if len(files) < 2:
        raise CaseError(f"{files[0]} is the only slice of its series: give the whole series")
    steps_mm = np.diff(positions_mm @ normal)
    if steps_mm.min() < SAME_MM:
        at = int(steps_mm.argmin())
        raise CaseError(
            f"{files[at]} and {files[at + 1].name} lie at the same position: remove duplicates, or "
            "split a series of several phases"
        )
    step: npt.NDArray[np.float64] = (positions_mm[-1] - positions_mm[0]) / len(steps_mm)
    shear = np.linalg.norm(step / (step @ normal) - normal)
    if shear > MAX_SHEAR:
        raise CaseError(
            f"{files[0].parent}: the gantry was tilted by {np.degrees(np.arctan(shear)):.3g} "
            "degrees, so the slices are sheared: make an upright NIfTI of them, as dcm2niix does"
        )
    off_mm = positions_mm - positions_mm[0] - np.arange(len(files))[:, None] * step
    _check_even(off_mm, normal, steps_mm, files)
    return step


def _check_even(
    off_mm: npt.NDArray[np.float64],
    normal: npt.NDArray[np.float64],
    steps_mm: npt.NDArray[np.float64],
    files: Sequence[Path],
) -> None:
    """Refuse slices that are off (N, 3) their places in an even stack by GRID_TOLERANCE."""
    usual_mm = float(np.median(steps_mm))
    if np.abs(off_mm @ normal).max() > GRID_TOLERANCE * usual_mm:
        at = int(steps_mm.argmax())
        raise CaseError(
            f"{steps_mm[at]:.4g} mm from {files[at]} to {files[at + 1].name}, where {usual_mm:.4g} "
            "mm is usual: copy the missing slices, or resample to even steps"
        )
    sideways_mm = np.linalg.norm(off_mm, axis=1)
    if sideways_mm.max() > GRID_TOLERANCE * usual_mm:
        at = int(sideways_mm.argmax())
        raise CaseError(
            f"{files[at]} lies {sideways_mm[at]:.3g} mm beside the line of the other slices: "
            "remove it, or give a series of one scan"
        )


def _check_size(folder: Path, grid: SourceGrid) -> None:
    spacing = np.linalg.norm(grid.affine[:3, :3], axis=0)
    low, high = SPACING_LIMITS_MM
    if spacing.min() < low or spacing.max() > high:
        text = " x ".join(f"{value:.3g}" for value in spacing)
        raise CaseError(f"{folder} has a spacing of {text} mm, outside {low} to {high}: mend it")
    if np.prod(grid.shape, dtype=float) > MAX_VOXELS:
        raise CaseError(f"{folder} has more than {MAX_VOXELS} voxels: split the series")


# Voxels


def read_series(series: Series, warn: Callable[[str], None]) -> Volume:
    """Read a series as float32 HU in canonical orientation; what was left out goes to `warn`.

    Raises:
        CaseError: the slices are no regular stack, or one cannot be decoded into HU.
    """
    files, grid = stack(series)
    for note in series.notes:
        warn(note)
    check_memory(series.folder, grid.shape, np.dtype(np.float32).itemsize)
    array = np.empty(canonical_shape(grid), np.float32)
    target = to_source(array, grid)
    for index, path in enumerate(files):
        target[:, :, index] = _read_hu(path, grid).T
    return Volume(array, canonical_spacing_mm(grid), grid)


def _read_hu(path: Path, grid: SourceGrid) -> FloatArray:
    """One slice (rows, columns): stored values, decoded and rescaled."""
    dataset, stored = _decoded(path)
    if stored.shape != (grid.shape[1], grid.shape[0]):
        raise CaseError(f"{path} holds pixels of shape {stored.shape}: export the series again")
    unit = dataset.get("RescaleType") or "HU"
    if unit not in ("HU", "US"):  # US: unspecified
        raise CaseError(f"{path} holds values in {unit}, not HU: give the CT series itself")
    (slope,), (intercept,) = (
        numbers(Slice(path, dataset), keyword, 1)
        for keyword in ("RescaleSlope", "RescaleIntercept")
    )
    return (stored * slope + intercept).astype(np.float32)


def _decoded(path: Path) -> tuple[Any, npt.NDArray[Any]]:
    """A file with its stored values, decompressed by what pydicom finds installed."""
    dataset = None
    try:
        dataset = pydicom.dcmread(path)
        return dataset, dataset.pixel_array
    except MemoryError:
        raise
    except Exception as error:  # each decoder raises kinds of its own
        syntax = None if dataset is None else dataset.file_meta.get("TransferSyntaxUID")
        if syntax is not None and not _can_decode(syntax):
            raise CaseError(
                f"{path} is stored as {syntax.name}, which nothing here decodes: pip install "
                "'pancreas-mtl[dicom]' for all that CTs use, or export uncompressed"
            ) from None
        raise CaseError(
            f"{path} is truncated or damaged ({reason(error)}): copy it again"
        ) from None


def _can_decode(syntax: Any) -> bool:
    try:
        return not syntax.is_encapsulated or bool(get_decoder(syntax).is_available)
    except (NotImplementedError, ValueError):  # a private syntax; no syntax at all
        return False
