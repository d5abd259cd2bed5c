"""Finding the CT series in a folder of DICOM files, by their headers alone."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pydicom
from pydicom import uid as uids

from pancreas_mtl.errors import CaseError, UsageError
from pancreas_mtl.interop.sources import is_dicom, walk

ENHANCED = (uids.EnhancedCTImageStorage, uids.LegacyConvertedEnhancedCTImageStorage)
pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE  # it would quote names
UIDS = ("StudyInstanceUID", "SOPInstanceUID", "FrameOfReferenceUID")
_TAGS = [
    *("SOPClassUID", "SeriesInstanceUID", "SeriesDescription", "Modality", "ImageType", *UIDS),
    *("Rows", "Columns", "PixelSpacing", "ImageOrientationPatient", "ImagePositionPatient"),
    *("NumberOfFrames", "SamplesPerPixel"),
]


class Slice(NamedTuple):
    """One file of a series and its header, without pixels."""

    path: Path
    header: Any  # pydicom.Dataset with the tags of _TAGS


@dataclass(frozen=True)
class Series:
    """The CT slices that share a SeriesInstanceUID, in no order and not checked yet."""

    folder: Path
    uid: str
    slices: tuple[Slice, ...]
    notes: tuple[str, ...] = ()  # what was left out of the folder, for the record

    @property
    def name(self) -> str:
        """A case name that tells nothing of the patient, the same for each copy of the series."""
        return f"ct_{hashlib.blake2b(self.uid.encode(), digest_size=6).hexdigest()}"

    def __str__(self) -> str:
        text = str(self.slices[0].header.get("SeriesDescription") or "no description")
        readable = "".join(sign for sign in text if sign.isprintable())
        return f"{self.uid} ({readable}, {len(self.slices)} slices)"


def numbers(one: Slice, keyword: str, count: int) -> list[float]:
    """The finite numbers of an element."""
    try:
        value = one.header.get(keyword)
        found = np.atleast_1d(np.array(value, dtype=np.float64)).tolist()
    except (ValueError, TypeError):
        found = []
    if len(found) != count or not np.isfinite(found).all():
        raise CaseError(f"{one.path} has no {keyword} of {count} numbers: export the series again")
    return list(map(float, found))


def find_series(folder: Path, choice: str | None) -> Series:
    """The only CT series below a folder, or the one whose SeriesInstanceUID is `choice`.

    Raises:
        UsageError: a file is damaged or has no series; there is no CT series, no such one, or
            several without a choice, which are listed.
    """
    groups, notes = _groups(folder)
    found = [Series(folder, uid, tuple(slices), notes) for uid, slices in groups.items()]
    listed = "; ".join(map(str, found))
    if choice is not None:
        found = [series for series in found if series.uid == choice]
        if not found:
            raise UsageError(f"series={choice} is not in {folder}, which holds {listed}")
    if len(found) > 1:
        raise UsageError(
            f"input={folder} holds {len(found)} CT series: choose one by series=UID from {listed}"
        )
    return found[0]


def _groups(folder: Path) -> tuple[dict[str, list[Slice]], tuple[str, ...]]:
    """CT slices by SeriesInstanceUID, and notes on other files; a UsageError if there are none."""
    groups: dict[str, list[Slice]] = defaultdict(list)
    others: Counter[str] = Counter()
    for path in _dicom_files(folder, others):
        header = _header(path)
        if (uid := str(header.get("SeriesInstanceUID") or "")) == "":
            raise UsageError(
                f"{path} has no SeriesInstanceUID, it is truncated or an anonymiser blanked it: "
                "copy it again, or anonymise again with new UIDs for old ones"
            )
        if kind := _not_ct(header):
            others[kind] += 1
        else:
            groups[uid].append(Slice(path, header))
    notes = tuple(f"{folder}: left out {count} x {kind}" for kind, count in others.items())
    if not groups:
        found = ", ".join(f"{count} x {kind}" for kind, count in others.items())
        raise UsageError(f"input={folder} holds no CT series but {found}: give one with CT slices")
    return dict(groups), notes


def _dicom_files(folder: Path, others: Counter[str]) -> list[Path]:
    """DICOM files below a folder; the rest is counted, unless it is named as the slices are."""
    files = walk(folder)
    found = [path for path in files if is_dicom(path)]
    suffixes = {_suffix(path) for path in found if path.name != "DICOMDIR"}
    for path in sorted(set(files) - set(found)):
        if _suffix(path) in suffixes:
            raise UsageError(
                f"{path} is named as the DICOM files are but is none: copy it again, or remove it"
            )
        others["file that is not DICOM"] += 1
    return [path for path in found if path.name != "DICOMDIR"]


def _header(path: Path) -> Any:
    try:
        return pydicom.dcmread(path, stop_before_pixels=True, specific_tags=_TAGS)
    except Exception as error:  # pydicom raises many kinds on damaged files
        reason = f"{path} cannot be read as DICOM ({error})"
        raise UsageError(f"{reason}: copy it again, or remove it") from None


def _not_ct(header: Any) -> str | None:
    """What a file holds if it is no slice of a CT volume, such as `MR` or `localizer`."""
    sop_class = uids.UID(str(header.get("SOPClassUID") or ""))
    if sop_class not in (uids.CTImageStorage, *ENHANCED):
        return sop_class.name or "file without SOPClassUID"
    if (modality := header.get("Modality")) != "CT":
        return f"modality {modality or 'unknown'}"
    return "localizer" if "LOCALIZER" in (header.get("ImageType") or ()) else None


def _suffix(path: Path) -> str:
    """The file's suffix; files named after their UID, such as `1.2.840.7`, have none."""
    return "" if path.suffix[1:].isdecimal() else path.suffix.lower()
