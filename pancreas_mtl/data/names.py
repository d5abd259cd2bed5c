"""Case names: which ones can be used, and how they stand in tables.

A spreadsheet runs a cell that begins with `=`, `+`, `-` or `@` as a formula. Such names are written
with an apostrophe in front, which spreadsheets hide, and read without it; so tables are harmless
and names survive the round trip.
"""

from __future__ import annotations

import re

_FORMULA = re.compile(r"'*[=+\-@]")
_ESCAPED = re.compile(r"'+[=+\-@]")


def name_problem(name: str) -> str | None:
    """Why files, tables and pages cannot carry a name; None where they can."""
    if not name.strip(". "):
        return "is no name"
    if not name.isprintable():
        return "has a character that cannot be printed"
    if "/" in name or "\0" in name:
        return "leads to another folder"
    return None


def to_cell(name: str) -> str:
    """A name as it is written into a table."""
    return f"'{name}" if _FORMULA.match(name) else name


def from_cell(cell: str) -> str:
    """The name that a table's cell stands for.

    Raises:
        ValueError: the cell cannot be a name.
    """
    name = cell.strip()
    name = name[1:] if _ESCAPED.match(name) else name
    if problem := name_problem(name):
        raise ValueError(problem)
    return name
