"""The tables of a report: targets, scores and confusion matrices, as values with their source."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from markupsafe import Markup
from scipy.integrate import quad
from scipy.stats import norm

from pancreas_mtl.evaluation.report.runs import Run

HEADINGS = {
    "whole_pancreas": "Whole pancreas",
    "pancreas": "Pancreas without lesion",
    "lesion": "Lesion",
    "subtype": "Subtype",
}


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
    """By how much the best of equally good, independent runs overstates itself on average.

    That is the expected maximum of as many standard normal variables, times the mean standard
    error (a quarter of the 95% interval's width). Runs scored on the same cases are correlated,
    which lessens it: an upper bound. None without intervals.
    """
    intervals = [run.value(f"{path}.ci95") for run in runs]
    if len(runs) < 2 or any(not ends or None in ends for ends in intervals):
        return None
    errors = [(high - low) / (2 * norm.ppf(0.975)) for low, high in intervals]
    return expected_maximum(len(runs)) * sum(errors) / len(errors)


def expected_maximum(count: int) -> float:
    """The expected maximum of `count` independent standard normal variables."""

    def integrand(x: float) -> float:
        return float(x * count * norm.pdf(x) * norm.cdf(x) ** (count - 1))

    return float(quad(integrand, -10, 10)[0])


def confusion_matrices(runs: Sequence[Run]) -> list[tuple[Run, list[list[Any]]]]:
    """Each run's confusion matrix: rows are references, columns predictions."""
    found = ((run, run.value("subtype.confusion_matrix")) for run in runs)
    return [(run, matrix) for run, matrix in found if matrix]
