"""Case names: what a file says of them, which ones can be used, and how they stand in tables.

A spreadsheet runs a cell that begins with `=`, `+`, `-` or `@` as a formula. Such names are written
with an apostrophe in front, which spreadsheets hide, and read without it; so tables are harmless
and names survive the round trip.
"""

from __future__ import annotations

import re
from pathlib import Path

SUFFIX = re.compile(r"\.(nii(\.gz)?|mha|mhd|nrrd|nhdr|hdr|mgz)$", re.IGNORECASE)
IMAGE_MARK = "_0000"  # the first channel's in nnU-Net
_FORMULA = re.compile(r"'*[=+\-@]")
_ESCAPED = re.compile(r"'+[=+\-@]")


def case_name(path: Path) -> str:
    """The case's name: the file's without `.nii.gz` or the like and without nnU-Net's `_0000`."""
    return _without_suffix(path.name)


def name_problem(name: str) -> str | None:
    """Why files, tables and pages cannot carry a name; None where they can."""
    if not name.strip(". "):
        return "is no name"
    if name != name.strip():
        return "begins or ends with a blank"
    if name.endswith(IMAGE_MARK):
        return f"ends in {IMAGE_MARK} twice, and once only marks an image"
    if not name.isprintable():
        return "has a character that cannot be printed"
    if "/" in name or "\0" in name:
        return "leads to another folder"
    return None


def to_cell(name: str) -> str:
    """A name as it is written into a table."""
    return f"'{name}" if _FORMULA.match(name) else name


def from_cell(cell: str) -> str:
    """The case that a table's cell names, as such or by a file.

    Raises:
        ValueError: the cell cannot be a name.
    """
    name = cell.strip()
    name = _without_suffix(name[1:] if _ESCAPED.match(name) else name)
    if problem := name_problem(name):
        raise ValueError(problem)
    return name


def _without_suffix(file_name: str) -> str:
    stem = SUFFIX.sub("", file_name)
    return stem if stem == IMAGE_MARK else stem.removesuffix(IMAGE_MARK)
