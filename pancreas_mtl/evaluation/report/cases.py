"""The table of cases: its rows, worst first, and its columns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from markupsafe import Markup, escape

from pancreas_mtl.evaluation.report.charts import REGIONS, plain_words
from pancreas_mtl.evaluation.report.runs import Run, RunCase
from pancreas_mtl.evaluation.report.tables import datum
from pancreas_mtl.evaluation.report.volumes import PackedCase, PackedOverlay
from pancreas_mtl.types import NUM_SUBTYPES


class CaseRow(NamedTuple):
    """One case of one run; `volumes` is the number of its `PackedCase`, if it has one."""

    run: Run
    case: RunCase
    path: str  # of its entry in metrics.json
    pictures: PackedOverlay | None
    volumes: int | None


@dataclass(frozen=True)
class Column:
    """A column of the table: how it is headed, and what it shows of a row."""

    title: str
    cell: Callable[[CaseRow], Markup]


def case_rows(runs: Sequence[Run], packed: Sequence[PackedCase]) -> list[CaseRow]:
    """Every case of every run, the lowest lesion DSC first; cases without scores come last."""
    pictures = {
        overlay.link: (overlay, number)
        for number, case in enumerate(packed)
        for overlay in case.overlays
    }
    rows = [
        CaseRow(run, case, f"cases.{number}", *pictures.get(case.link, (None, None)))
        for run in runs
        for number, case in enumerate(run.cases)
    ]
    return sorted(rows, key=_badness)


def _badness(row: CaseRow) -> tuple[float, float, str]:
    lesion, whole = (row.case.scores.get(f"{key}_dsc") for key in ("lesion", "whole_pancreas"))
    return (2.0 if lesion is None else lesion, 2.0 if whole is None else whole, row.case.name)


SCORE_COLUMNS = (*(f"{key}_dsc" for key, _ in REGIONS), "lesion_hd95_mm")


def columns(rows: Sequence[CaseRow]) -> list[Column]:
    """The columns for which any row has something to show."""
    found = [
        Column(plain_words(key), _score_cell(key))
        for key in SCORE_COLUMNS
        if any(key in row.case.scores for row in rows)
    ]
    if any(row.case.scores.get("subtype") is not None for row in rows):
        found.append(Column("subtype", lambda row: datum(row.run, f"{row.path}.subtype")))
    if any(row.case.scores.get("subtype_predicted") is not None for row in rows):
        found.append(Column("predicted", _predicted_cell))
    if any(row.case.probabilities for row in rows):
        found.append(Column("probabilities", _probabilities_cell))
    if any(row.case.scores.get("conformal_set") is not None for row in rows):
        found.append(Column("conformal set", _set_cell))
    if any(row.case.seconds for row in rows):
        found.append(Column("seconds", _seconds_cell))
    return found


def _score_cell(key: str) -> Callable[[CaseRow], Markup]:
    digits = 1 if key.endswith("_mm") else 3
    return lambda row: datum(row.run, f"{row.path}.{key}", digits)


def verdict(row: CaseRow) -> str:
    """Whether the subtype is right, wrong or unknown."""
    reference, answer = (row.case.scores.get(key) for key in ("subtype", "subtype_predicted"))
    if reference is None or answer is None:
        return "unknown"
    return "right" if reference == answer else "wrong"


def _predicted_cell(row: CaseRow) -> Markup:
    value = datum(row.run, f"{row.path}.subtype_predicted")
    return Markup('<span class="{0}" title="{0}">{1}</span>').format(verdict(row), value)


def _probabilities_cell(row: CaseRow) -> Markup:
    """Those of `metrics.json`; where there is none, those that were predicted."""
    if not row.case.scores.get("subtype_probabilities"):
        return escape(" ".join(f"{p:.2f}" for p in row.case.probabilities or ()))
    path = f"{row.path}.subtype_probabilities"
    return Markup(" ").join(datum(row.run, f"{path}.{s}", 2) for s in range(NUM_SUBTYPES))


def _set_cell(row: CaseRow) -> Markup:
    members = range(len(row.case.scores.get("conformal_set") or ()))
    return Markup("|").join(datum(row.run, f"{row.path}.conformal_set.{n}") for n in members)


def _seconds_cell(row: CaseRow) -> Markup:
    return escape(f"{sum(row.case.seconds.values()):.2f}" if row.case.seconds else "")


def picture_alt(row: CaseRow) -> str:
    """What a picture of a case shows, in words."""
    source = row.run.name if row.case.files.prediction else "the reference"
    return (
        f"CT of {row.case.name} in axial, coronal and sagittal slices through the lesion, with "
        f"the outlines of whole pancreas and lesion as {source} has them"
    )


def why_no_picture(row: CaseRow) -> str:
    """What stands in the place of a picture."""
    return "CT not found" if row.case.files.image is None else "not drawn, see notes"
