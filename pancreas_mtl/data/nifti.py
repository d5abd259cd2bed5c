"""NIfTI files, read without trusting them and written atomically.

Whatever is wrong with a file becomes a `CaseError` that names it and says what to do. Nothing is
allocated on the word of a header alone: it must promise no more than MAX_VOXELS, and no more than
the file can hold, packed or not. A gzip stream is unpacked only as far as the header promises.
"""

from __future__ import annotations

import gzip
import io
import logging
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import nibabel as nib
import numpy as np
import numpy.typing as npt
from nibabel.spatialimages import HeaderDataError

from pancreas_mtl.data.files import atomic_path
from pancreas_mtl.errors import CaseError, LackOfMemoryError
from pancreas_mtl.types import Triple

SUFFIXES = (".nii", ".nii.gz")
MAX_VOXELS = 2**30  # 512 x 512 x 4096
SPACING_LIMITS_MM = (0.01, 100.0)

_MAX_OFFSET = 2**24  # bytes of header extensions, which are skipped
_GZIP_RATIO = 1032  # no deflate stream expands further, https://zlib.net/zlib_tech.html
_CHUNK_BYTES = 2**22
_MM_PER_UNIT = {1: 1000.0, 3: 0.001}  # NIfTI codes of metre and micrometre; all else is mm
_quiet = logging.getLogger(f"{__name__}.header")  # nibabel's notes on headers that it mends
_quiet.addHandler(logging.NullHandler())
_quiet.propagate = False


class NiftiFile(NamedTuple):
    """A file opened at its first voxel."""

    header: Any  # nibabel's Nifti1Header or Nifti2Header
    shape: Triple  # (i, j, k), the file's own axis order
    affine: npt.NDArray[np.float64]  # (4, 4), voxel to RAS mm
    stream: BinaryIO

    def slabs(self) -> Iterator[tuple[slice, npt.NDArray[Any]]]:
        """Yield (slices of the last axis, their scaled values (i, j, n)) of a few MB each."""
        dtype = self.header.get_data_dtype()
        slope, offset = self.header.get_slope_inter()
        slice_bytes = self.shape[0] * self.shape[1] * dtype.itemsize
        step = max(1, _CHUNK_BYTES // slice_bytes)
        for start in range(0, self.shape[2], step):
            stop = min(start + step, self.shape[2])
            values = np.frombuffer(_take(self.stream, (stop - start) * slice_bytes), dtype)
            values = values.reshape((*self.shape[:2], stop - start), order="F")
            if slope is not None and (slope, offset) != (1.0, 0.0):
                with np.errstate(over="ignore", invalid="ignore"):  # the reader checks for inf
                    values = values * np.float64(slope) + np.float64(offset)
            yield slice(start, stop), values
        self.stream.read(1)  # at its end, a gzip stream checks its checksum


@contextmanager
def opened(path: Path) -> Iterator[NiftiFile]:
    """Open a `.nii` or `.nii.gz` file of three dimensions; its failures become `CaseError`s."""
    try:
        _refuse_other_kinds(path)
        with path.open("rb") as file:
            packed = file.peek(2)[:2] == b"\x1f\x8b"
            stream = gzip.GzipFile(fileobj=file) if packed else file
            nifti = _parsed(path, stream)  # type: ignore[arg-type]
            room = os.fstat(file.fileno()).st_size * (_GZIP_RATIO if packed else 1)
            if nifti.header.get_data_dtype().itemsize * np.prod(nifti.shape, dtype=float) > room:
                raise EOFError
            yield nifti
    except (EOFError, gzip.BadGzipFile, zlib.error):
        raise _bad(path, "is truncated or damaged", "copy it again from its source") from None
    except HeaderDataError as error:
        raise _bad(path, f"is no valid NIfTI file ({error})", "convert it again") from None
    except MemoryError:
        raise LackOfMemoryError(
            f"{path} needs more memory than is free: free memory, or crop it"
        ) from None
    except OSError as error:
        raise _bad(path, f"cannot be read ({error.strerror})", "check the file") from None


def write(path: Path, array: npt.NDArray[Any], header: Any) -> None:
    """Write `array` (i, j, k) with the geometry of `header`, all at once or not at all.

    Texts, scaling and extensions of the header are left out; they describe another image.

    Raises:
        CaseError: the disk is full, or the folder cannot be written to.
    """
    header = header.copy()
    header.set_data_dtype(array.dtype)
    header.set_slope_inter(1.0, 0.0)
    header["vox_offset"] = header.single_vox_offset
    header["cal_min"] = header["cal_max"] = 0
    for text in ("descrip", "aux_file", "intent_name", *({"db_name"} & set(header.keys()))):
        header[text] = b""
    array = array.astype(array.dtype.newbyteorder(header.endianness), copy=False)
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        packed = gzip.GzipFile("", "wb", 1, file, mtime=0) if path.suffix == ".gz" else None
        with packed or file as stream:
            stream.write(header.binaryblock + bytes(4))  # four zeros: no extensions
            stream.write(array.tobytes("F"))


def _refuse_other_kinds(path: Path) -> None:
    if not path.name.lower().endswith(SUFFIXES):
        kind = path.suffix or "no suffix"
        raise _bad(path, f"is no .nii or .nii.gz file ({kind})", "convert it to NIfTI")
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "is no file, or a link that leads nowhere"
        raise _bad(path, what, "check the path")


def _parsed(path: Path, stream: BinaryIO) -> NiftiFile:
    """Read and check the header; leave the stream at the first voxel."""
    raw = _take(stream, 4)
    is_nifti2 = 540 in (int.from_bytes(raw, "little"), int.from_bytes(raw, "big"))
    header_class = nib.Nifti2Header if is_nifti2 else nib.Nifti1Header
    header = header_class(raw + _take(stream, header_class.sizeof_hdr - 4), check=False)
    header.check_fix(logger=_quiet)
    if header["magic"].item() != header.single_magic:
        raise HeaderDataError("its voxels are in another file")
    offset = float(header["vox_offset"])
    if not offset <= _MAX_OFFSET:
        raise HeaderDataError(f"its voxels begin at byte {offset:g}")
    _take(stream, max(int(offset), header.single_vox_offset) - header.sizeof_hdr)
    return NiftiFile(header, _checked_shape(path, header), _checked_affine(path, header), stream)


def _checked_shape(path: Path, header: Any) -> Triple:
    shape = tuple(int(size) for size in header.get_data_shape())
    text = " x ".join(map(str, shape))
    if min(shape, default=0) < 1:
        raise _bad(path, f"has no voxels (shape {text})", "convert it again")
    if np.prod(shape, dtype=float) > MAX_VOXELS:
        raise _bad(path, f"promises {text} voxels, more than {MAX_VOXELS}", "crop or split it")
    if len(shape) < 3 or max(shape[3:], default=1) > 1:
        raise _bad(path, f"is not one 3D volume (shape {text})", "save one volume a file")
    dtype = header.get_data_dtype()
    if dtype.kind not in "iuf":
        code = header["datatype"]
        raise _bad(
            path, f"has no single number a voxel (RGB or such, datatype {code})", "convert it to HU"
        )
    return shape[0], shape[1], shape[2]


@np.errstate(over="ignore", invalid="ignore")
def _checked_affine(path: Path, header: Any) -> npt.NDArray[np.float64]:
    remedy = "mend its sform or qform"
    try:
        affine = np.array(header.get_best_affine(), dtype=np.float64)
    except ValueError:
        raise _bad(path, "has a qform that is no rotation", remedy) from None
    affine[:3] *= _MM_PER_UNIT.get(int(header["xyzt_units"]) % 8, 1.0)
    if not np.isfinite(affine).all():
        raise _bad(path, "has an affine that is not finite", remedy)
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    low, high = SPACING_LIMITS_MM
    if spacing.min() < low or spacing.max() > high:
        text = " x ".join(f"{value:.3g}" for value in spacing)
        raise _bad(path, f"has a spacing of {text} mm, outside {low} to {high}", remedy)
    if abs(np.linalg.det(affine[:3, :3] / spacing)) < 1e-3:
        raise _bad(path, "has a singular affine (axes in one plane)", remedy)
    return affine


def _take(stream: BinaryIO | io.BufferedIOBase, count: int) -> bytes:
    data = stream.read(count)
    if len(data) < count:
        raise EOFError
    return data


def _bad(path: Path, problem: str, remedy: str) -> CaseError:
    return CaseError(f"{path} {problem}: {remedy}")
