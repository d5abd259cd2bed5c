"""What a prediction's `input` stands for: NIfTI files, or one CT series of a DICOM folder.

pydicom and highdicom are imported only where DICOM is at hand, for they are an optional extra.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from pancreas_mtl.data.images import find_images, list_files, listing
from pancreas_mtl.data.nifti import SUFFIXES
from pancreas_mtl.errors import UsageError
from pancreas_mtl.inference.pipeline import Source, nifti_source

OUTPUT_FORMATS = ("nifti", "dicom_seg")


def find_sources(
    path: Path, series: str | None, output_format: str, models: Sequence[str]
) -> list[Source]:
    """The cases of an input.

    Args:
        path: a NIfTI file, a folder of them, or a folder that holds DICOM files at any depth and
            no NIfTI file at its top.
        series: SeriesInstanceUID, for a folder with several CT series.
        output_format: `nifti`, or `dicom_seg` for an input of DICOM files.
        models: digests of the bundles that predict, to be named in DICOM files.

    Raises:
        UsageError: nothing can be read there, or an option does not fit what is there.
    """
    if output_format not in OUTPUT_FORMATS:
        options = ", ".join(OUTPUT_FORMATS)
        raise UsageError(f"output_format={output_format}: choose one of {options}")
    with listing(path):
        if path.is_file() and is_dicom(path):
            raise UsageError(f"input={path} is one DICOM file: give the folder of its series")
        if path.is_dir() and not _holds_nifti(path) and any(map(is_dicom, walk(path))):
            return [_dicom_source(path, series, output_format, models)]
    for option, is_set in {
        f"series={series}": series is not None,
        f"output_format={output_format}": output_format == "dicom_seg",
    }.items():
        if is_set:
            raise UsageError(f"{option} is for DICOM, but input={path} is not: leave it out")
    return [nifti_source(file) for file in find_images(path)]


def is_dicom(path: Path) -> bool:
    """Whether a file starts as DICOM files do (PS3.10, section 7.1)."""
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"


def walk(folder: Path) -> list[Path]:
    """All regular files below a folder, sorted; hidden ones and links to folders are left out."""

    def fail(error: OSError) -> None:
        raise error

    found = []
    for parent, folders, names in os.walk(folder, onerror=fail):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(parent, name) for name in names if not name.startswith(".")]
    return sorted(file for file in found if file.is_file())


def _holds_nifti(folder: Path) -> bool:
    return any(file.name.lower().endswith(SUFFIXES) for file in list_files(folder))


def _dicom_source(
    folder: Path, series: str | None, output_format: str, models: Sequence[str]
) -> Source:
    try:
        from pancreas_mtl.interop import dicom_read, dicom_series, dicom_write
    except ModuleNotFoundError as error:
        raise UsageError(
            f"input={folder} holds DICOM files ({error}): pip install 'pancreas-mtl[dicom]'"
        ) from None
    chosen = dicom_series.find_series(folder, series)
    if output_format == "nifti":
        return dicom_read.dicom_source(chosen)
    return dicom_write.seg_source(chosen, models)
