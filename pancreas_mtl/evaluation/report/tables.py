"""The tables of a report: targets, scores and confusion matrices, as values with their source."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from markupsafe import Markup

from pancreas_mtl.evaluation.report.runs import Run
from pancreas_mtl.metrics.comparison import (
    PairedDifference,
    holm,
    optimism_of_best_of,
    paired_difference,
)
from pancreas_mtl.metrics.intervals import mean

HEADINGS = {
    "whole_pancreas": "Whole pancreas",
    "pancreas": "Pancreas without lesion",
    "lesion": "Lesion",
    "subtype": "Subtype",
}
COMPARED = ("whole_pancreas_dsc", "lesion_dsc")
NORMAL_QUANTILE = 1.96  # half of a 95% interval in standard errors


class TargetRow(NamedTuple):
    """What one run reached; `path` leads to the target in its `metrics.json`."""

    run: Run
    path: str
    value: float | None
    low: float | None
    high: float | None
    met: bool


@dataclass(frozen=True)
class Target:
    """One target and every run's result; `scale` is the right end of the bars."""

    name: str
    required: float
    rows: tuple[TargetRow, ...]
    scale: float


class Score(NamedTuple):
    """A row of the table of scores; `path` leads to a value, or to its mean and interval."""

    label: str
    path: str


class Difference(NamedTuple):
    """A run's mean score minus that of the first run, on the cases of both."""

    run: Run
    key: str
    paired: PairedDifference
    cases: int
    p_value: float = 1.0  # corrected for all comparisons of the page


def targets(runs: Sequence[Run]) -> list[Target]:
    """The targets in the order of the first run that has them."""
    rows: dict[tuple[str, float], list[TargetRow]] = {}
    for run in runs:
        for number, target in enumerate(run.value("targets") or []):
            low, high = target.get("ci95") or (None, None)
            row = TargetRow(run, f"targets.{number}", target["value"], low, high, target["met"])
            rows.setdefault((target["name"], target["target"]), []).append(row)
    return [
        Target(name, required, tuple(found), scale=max(1.0, required, *_numbers(found)))
        for (name, required), found in rows.items()
    ]


def _numbers(rows: Sequence[TargetRow]) -> Iterator[float]:
    for row in rows:
        yield from (value for value in (row.value, row.high) if value is not None)


def scores(runs: Sequence[Run]) -> list[tuple[str, list[Score]]]:
    """Every mean with an interval and every lone number, below their headings."""
    groups = []
    for key, heading in HEADINGS.items():
        entries = [(name, value) for run in runs for name, value in (run.value(key) or {}).items()]
        names = dict.fromkeys(name for name, value in entries if _is_score(value))
        if names:
            groups.append((heading, [Score(name, f"{key}.{name}") for name in names]))
    return groups


def _is_score(value: Any) -> bool:
    return "mean" in value if isinstance(value, Mapping) else isinstance(value, int | float)


def datum(run: Run, path: str, digits: int = 3) -> Markup:
    """A number of `metrics.json` as `<data>` with its full value and its source."""
    value = run.value(path)
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return Markup('<span class="none" title="not defined">&ndash;</span>')
    text = f"{value:.{digits}f}" if isinstance(value, float) else str(value)
    return Markup('<data value="{}" data-run="{}" data-path="{}">{}</data>').format(
        repr(value), run.name, path, text
    )


def estimate(run: Run, path: str, digits: int = 3) -> Markup:
    """A value, with its interval where there is one."""
    value = run.value(path)
    if not isinstance(value, Mapping):
        return datum(run, path, digits)
    middle = datum(run, f"{path}.mean", digits)
    if not value.get("ci95"):
        return middle
    low, high = (datum(run, f"{path}.ci95.{end}", digits) for end in (0, 1))
    return Markup('{} <span class="interval">{} to {}</span>').format(middle, low, high)


def comparable(runs: Sequence[Run]) -> list[Run]:
    """The largest group of runs that were scored on the same cases; empty if none shares them."""
    groups: dict[frozenset[str], list[Run]] = {}
    for run in runs:
        if run.metrics is not None:
            groups.setdefault(frozenset(case.name for case in run.cases), []).append(run)
    largest = max(groups.values(), key=len, default=[])
    return largest if len(largest) > 1 else []


def optimism(runs: Sequence[Run], path: str) -> float | None:
    """By how much the best of equally good runs may overstate itself; None without intervals."""
    intervals = [run.value(f"{path}.ci95") for run in runs]
    if len(runs) < 2 or any(not ends or None in ends for ends in intervals):
        return None
    widths = [high - low for low, high in intervals]
    standard_error = sum(widths) / len(widths) / (2 * NORMAL_QUANTILE)
    return optimism_of_best_of(len(runs), standard_error)


def differences(runs: Sequence[Run]) -> list[Difference]:
    """Every comparable run against the first, paired over cases, p-values corrected by Holm."""
    found = []
    for key in COMPARED if len(runs) > 1 else ():
        first = _by_name(runs[0], key)
        for run in runs[1:]:
            other = _by_name(run, key)
            names = [name for name in first if name in other]
            if names:
                pair = (np.array([scores[name] for name in names]) for scores in (other, first))
                found.append(Difference(run, key, paired_difference(mean, *pair), len(names)))
    corrected = holm([difference.paired.p_value for difference in found])
    return [difference._replace(p_value=p) for difference, p in zip(found, corrected, strict=True)]


def _by_name(run: Run, key: str) -> dict[str, float]:
    values = ((case.name, case.scores.get(key)) for case in run.cases)
    return {name: value for name, value in values if value is not None}


def confusion_matrices(runs: Sequence[Run]) -> list[tuple[Run, list[list[Any]]]]:
    """Each run's confusion matrix: rows are references, columns predictions."""
    found = ((run, run.value("subtype.confusion_matrix")) for run in runs)
    return [(run, matrix) for run, matrix in found if matrix]
