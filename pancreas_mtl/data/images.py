"""Images and masks of one convention in memory, and exactly back to the file's own.

In memory, arrays are `(D, H, W)` as `types` has it, whatever the file's axis order. Only flips and
transpositions lead there, so the way back is exact; oblique and sheared grids keep their voxels.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
from nibabel.orientations import apply_orientation, axcodes2ornt, io_orientation, ornt_transform

from pancreas_mtl.data import nifti
from pancreas_mtl.data.names import IMAGE_MARK, SUFFIX, case_name
from pancreas_mtl.data.pool import free_ram_bytes
from pancreas_mtl.errors import CaseError, LackOfMemoryError, UsageError
from pancreas_mtl.types import NUM_LABELS, LabelArray, SourceGrid, Triple, TripleMm, Volume

LABEL_TOLERANCE = 1e-3  # masks hold values such as 1.0000152587890625 where 1 is meant
GRID_TOLERANCE = 0.1  # of the smallest spacing, at the corners of two grids that count as one
_CANONICAL = axcodes2ornt(("L", "P", "S"))  # of (W, H, D)


def read_image(path: Path, *, warn: Callable[[str], None] | None = None) -> Volume:
    """Read a CT as float32 HU.

    Args:
        path: a `.nii` or `.nii.gz` file.
        warn: with it, voxels that are not finite take the image's lowest finite value, and one
            line about them goes to `warn`; without it they are an error.

    Raises:
        CaseError: the file cannot be read or is no single 3D volume of numbers; a voxel is not
            finite, and `warn` is None, or no voxel is finite.
    """
    volume = _read(path, np.float32, _as_float32)
    finite = np.isfinite(volume.array)
    if not finite.all():
        count = int(finite.size - finite.sum())
        problem = f"{path} has {count} of {finite.size} voxels that are not finite"
        if warn is None or count == finite.size:
            raise CaseError(f"{problem}: export it again, or mend a copy with the audit's fix=true")
        lowest = volume.array.min(where=finite, initial=np.inf)
        volume.array[~finite] = lowest
        warn(f"{problem}; they count as {lowest:g}")
    return volume


def read_mask(path: Path, *, grid: SourceGrid | None = None) -> Volume:
    """Read a mask as uint8 labels; values within LABEL_TOLERANCE of a label are rounded.

    Args:
        path: a `.nii` or `.nii.gz` file.
        grid: the image's grid, which the mask must share, and whose orientation it takes.

    Raises:
        CaseError: the file cannot be read, holds another value, or lies on another grid.
    """

    def labels(values: npt.NDArray[Any]) -> LabelArray:
        try:
            return round_labels(values)
        except ValueError as error:
            raise CaseError(f"{path} holds {error}: use 0, 1 and 2 alone") from None

    if grid is not None and (problem := grid_difference(read_grid(path), grid)):
        raise CaseError(
            f"{path} is not on its image's grid ({problem}): resample it onto the image"
        )
    return _read(path, np.uint8, labels, grid)


@np.errstate(invalid="ignore")
def round_labels(values: npt.NDArray[Any]) -> LabelArray:
    """Round mask values to labels; a ValueError names a value that is no label."""
    labels = values if values.dtype.kind in "iu" else np.rint(values)
    good = (labels >= 0) & (labels < NUM_LABELS)
    if labels is not values:
        good &= np.abs(values - labels) <= LABEL_TOLERANCE
    if not good.all():
        raise ValueError(f"the value {values[~good][0]:.17g}")
    return labels.astype(np.uint8)


def read_grid(path: Path) -> SourceGrid:
    """Read shape, affine and header of a file, and none of its voxels."""
    with nifti.opened(path) as file:
        return SourceGrid(file.shape, file.affine, file.header)


def _read(
    path: Path,
    dtype: npt.DTypeLike,
    decode: Callable[[npt.NDArray[Any]], npt.NDArray[Any]],
    grid: SourceGrid | None = None,
) -> Volume:
    """Fill a canonical array slab by slab, so that memory holds the voxels once."""
    with nifti.opened(path) as file:
        grid = grid or SourceGrid(file.shape, file.affine, file.header)
        check_memory(path, grid.shape, np.dtype(dtype).itemsize)
        array = np.empty(canonical_shape(grid), dtype)
        target = to_source(array, grid)
        for where, values in file.slabs():
            target[:, :, where] = decode(values)
    return Volume(array, canonical_spacing_mm(grid), grid)


def check_memory(path: Path, shape: Triple, itemsize: int) -> None:
    """Refuse an array that would not fit into free memory, by a `CaseError` that names `path`."""
    needed, free = float(np.prod(shape)) * (itemsize + 1), free_ram_bytes()
    if needed > free:
        text = f"needs {needed / 1e9:.1f} GB of memory, {free / 1e9:.1f} GB are free"
        raise LackOfMemoryError(f"{path} {text}: free memory, or crop it")


def _as_float32(values: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    with np.errstate(over="ignore", invalid="ignore"):
        return values.astype(np.float32)


# Geometry


def canonical_shape(grid: SourceGrid) -> Triple:
    """The shape (D, H, W) of a grid's voxels in canonical orientation."""
    d, h, w = (grid.shape[axis] for axis in _source_axes(grid))
    return d, h, w


def canonical_spacing_mm(grid: SourceGrid) -> TripleMm:
    """The spacing (D, H, W): lengths of the affine's columns, also where they are oblique."""
    lengths = np.linalg.norm(grid.affine[:3, :3], axis=0)
    d, h, w = (float(lengths[axis]) for axis in _source_axes(grid))
    return d, h, w


def volume_from_source(array: npt.NDArray[Any], grid: SourceGrid) -> Volume:
    """Bring an array (i, j, k) of the file's axis order into canonical orientation."""
    turned = apply_orientation(array, _orientation(grid)).transpose(2, 1, 0)
    return Volume(np.ascontiguousarray(turned), canonical_spacing_mm(grid), grid)


def to_source(array: npt.NDArray[Any], grid: SourceGrid) -> npt.NDArray[Any]:
    """Give a view (i, j, k) of a canonical array (D, H, W) in the file's axis order."""
    back = ornt_transform(_CANONICAL, io_orientation(grid.affine))
    view: npt.NDArray[Any] = apply_orientation(array.transpose(2, 1, 0), back)
    return view


@np.errstate(over="ignore", invalid="ignore")
def grid_difference(grid: SourceGrid, other: SourceGrid) -> str | None:
    """Say in what two grids differ, None if they agree up to GRID_TOLERANCE at every corner."""
    if grid.shape != other.shape:
        return f"shape {_times(grid.shape)} instead of {_times(other.shape)}"
    last = np.array(grid.shape) - 1
    corners = np.array([[*last * corner, 1] for corner in itertools.product((0, 1), repeat=3)])
    shift_mm = np.linalg.norm(corners @ (grid.affine - other.affine).T, axis=1).max()
    if not shift_mm <= GRID_TOLERANCE * min(canonical_spacing_mm(other)):
        return f"corners up to {shift_mm:.3g} mm apart"
    return None


def geometry_warnings(grid: SourceGrid) -> list[str]:
    """What is doubtful in a header, though the file can be read."""
    if grid.header is None:
        return []
    sform, qform = grid.header.get_sform(coded=True)[0], None
    try:
        qform = grid.header.get_qform(coded=True)[0]
    except ValueError:
        return ["its qform is no rotation; the sform counts"]
    if sform is None and qform is None:
        return ["neither sform nor qform is set: its orientation is a guess"]
    if sform is not None and qform is not None:
        other = SourceGrid(grid.shape, qform), SourceGrid(grid.shape, sform)
        if problem := grid_difference(*other):
            return [f"sform and qform disagree ({problem}); the sform counts"]
    return []


def _orientation(grid: SourceGrid) -> npt.NDArray[np.float64]:
    turn: npt.NDArray[np.float64] = ornt_transform(io_orientation(grid.affine), _CANONICAL)
    return turn


def _source_axes(grid: SourceGrid) -> list[int]:
    """The file's axis behind each of D, H, W."""
    targets = _orientation(grid)[:, 0].tolist()
    return [targets.index(axis) for axis in (2, 1, 0)]


def _times(shape: Triple) -> str:
    return " x ".join(map(str, shape))


# Writing and naming


def write_mask(path: Path, labels: LabelArray, grid: SourceGrid) -> None:
    """Write canonical labels (D, H, W) as uint8 with the shape and geometry of the source file.

    Raises:
        CaseError: the disk is full, or the folder cannot be written to.
    """
    write_volume(path, labels.astype(np.uint8, copy=False), grid)


def write_volume(path: Path, array: npt.NDArray[Any], grid: SourceGrid) -> None:
    """Write a canonical array (D, H, W) in its own dtype into the grid of its source."""
    nifti.write(path, to_source(array, grid), grid.header or _new_header(grid))


def _new_header(grid: SourceGrid) -> Any:
    header = nib.Nifti1Header()
    header.set_data_shape(grid.shape)
    header.set_qform(grid.affine, code="scanner")  # without shears, which only an sform can hold
    header.set_sform(grid.affine, code="scanner")
    header.set_xyzt_units("mm")
    return header


def find_images(path: Path) -> list[Path]:
    """The images that `path` stands for: itself, or the NIfTI files in a folder, sorted by name.

    In a folder, `x.nii.gz` beside `x_0000.nii.gz` is its mask and left out, as are hidden files.
    Images of formats that are not read stay in the list; so none is passed over in silence.

    Raises:
        UsageError: no such path, a file of another format, a folder without images, or two images
            of one name.
    """
    with listing(path):
        if path.is_file() and not path.name.lower().endswith(nifti.SUFFIXES):
            raise UsageError(f"{path} is no .nii or .nii.gz file: convert it to NIfTI")
        if path.is_file():
            return [path]
        if not path.is_dir():
            raise UsageError(f"{path} is no file and no folder: check the path")
    files = list_files(path)
    if not any(file.name.lower().endswith(nifti.SUFFIXES) for file in files):
        others = ", ".join(sorted({file.suffix for file in files if file.suffix})[:5])
        kinds = f" (but {others})" if others else ""
        raise UsageError(
            f"{path} holds no .nii or .nii.gz file{kinds}: give a folder of CTs in NIfTI, or one"
        )
    found = [file for file in files if SUFFIX.search(file.name)]
    marked = {case_name(file) for file in found if _is_marked(file)}
    images: dict[str, Path] = {}
    for file in found:
        name = case_name(file)
        if name in marked and not _is_marked(file):
            continue
        if name in images:
            both = f"{images[name].name} and {file.name}"
            raise UsageError(f"{path} holds {name} twice ({both}): remove or rename one of them")
        images[name] = file
    return list(images.values())


def list_files(folder: Path) -> list[Path]:
    """What is in a folder and not hidden, sorted; a UsageError where it cannot be listed."""
    with listing(folder):
        names = sorted(os.listdir(folder))
    return [folder / name for name in names if not name.startswith(".")]


@contextmanager
def listing(folder: Path) -> Iterator[None]:
    """Turn a folder without permission, or a loop of links, into a `UsageError`."""
    try:
        yield
    except OSError as error:
        where = error.filename or folder
        reason = f"{where} cannot be listed ({error.strerror})"
        raise UsageError(f"{reason}: check the folder and its permissions") from None


def _is_marked(file: Path) -> bool:
    return SUFFIX.sub("", file.name).endswith(IMAGE_MARK)
