"""The tables of a report: targets, scores and confusion matrices, as values with their source."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from markupsafe import Markup

from pancreas_mtl.evaluation.compare import STANDARD_ERRORS_PER_INTERVAL, Comparison, compare_rows
from pancreas_mtl.evaluation.report.runs import Run
from pancreas_mtl.metrics.comparison import holm, optimism_of_best_of

HEADINGS = {
    "whole_pancreas": "Whole pancreas",
    "pancreas": "Pancreas without lesion",
    "lesion": "Lesion",
    "lesion_detection": "Lesions found, as objects",
    "subtype": "Subtype",
    "subtype.conformal": "Conformal sets of subtypes",
}
SETTINGS = ("nsd_tolerance_mm", "hit_iou", "target_coverage")  # not scores, but how they are taken
NSD_TOLERANCE, HIT_IOU = "lesion.nsd_tolerance_mm", "lesion_detection.hit_iou"
VERDICTS = {True: "met", False: "not met", None: "not measured"}
GROUPS = {"by_subtype": "by subtype", "by_lesion_size": "by lesion size"}
GROUP_COLUMNS = ("whole_pancreas_dsc", "lesion_dsc", "lesion_sensitivity", "subtype_accuracy")


class TargetRow(NamedTuple):
    """What one run reached; `path` leads to the target in its `metrics.json`."""

    run: Run
    path: str
    value: float | None
    low: float | None
    high: float | None
    verdict: str


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
    """A run compared with the first one; `p_value` is corrected for all comparisons of the page."""

    run: Run
    comparison: Comparison
    p_value: float


def targets(runs: Sequence[Run]) -> list[Target]:
    """The targets in the order of the first run that has them."""
    rows: dict[tuple[str, float], list[TargetRow]] = {}
    for run in runs:
        for number, target in enumerate(run.value("targets") or []):
            low, high = target.get("ci95") or (None, None)
            verdict = VERDICTS[target["met"]]
            row = TargetRow(run, f"targets.{number}", target["value"], low, high, verdict)
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
        entries = [entry for run in runs for entry in (run.value(key) or {}).items()]
        names = dict.fromkeys(
            name for name, value in entries if _is_score(value) and name not in SETTINGS
        )
        if names:
            groups.append((heading, [Score(name, f"{key}.{name}") for name in names]))
    return groups


def _is_score(value: Any) -> bool:
    return "mean" in value if isinstance(value, Mapping) else isinstance(value, int | float)


def datum(run: Run, path: str, digits: int | None = 3) -> Markup:
    """A number of `metrics.json` as `<data>` with its full value and its source.

    A setting is shown as it was given: `digits` is None.
    """
    value = run.value(path)
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return Markup('<span class="none" title="not defined">&ndash;</span>')
    places = "g" if digits is None else f".{digits}f"
    text = f"{value:{places}}" if isinstance(value, float) else str(value)
    return Markup('<data value="{}" data-run="{}" data-path="{}">{}</data>').format(
        repr(value), run.name, path, text
    )


def estimate(run: Run, path: str, digits: int = 3) -> Markup:
    """A value, with its interval where there is one: of `x`, in `x.ci95` or in `x_ci95`."""
    is_mean = isinstance(run.value(path), Mapping)
    middle = datum(run, f"{path}.mean" if is_mean else path, digits)
    interval = f"{path}.ci95" if is_mean else f"{path}_ci95"
    if not run.value(interval):
        return middle
    low, high = (datum(run, f"{interval}.{end}", digits) for end in (0, 1))
    return Markup('{} <span class="interval">{} to {}</span>').format(middle, low, high)


def comparable(runs: Sequence[Run]) -> list[Run]:
    """The largest group of runs that were scored on the same cases; empty if none shares them."""
    groups: dict[frozenset[str], list[Run]] = {}
    for run in runs:
        if run.metrics is not None:
            groups.setdefault(frozenset(case.name for case in run.cases), []).append(run)
    largest = max(groups.values(), key=len, default=[])
    return largest if len(largest) > 1 else []


def settings(runs: Sequence[Run]) -> list[Run]:
    """The runs whose settings to state: the first that has some, and all if they differ."""
    found = [run for run in runs if run.value(NSD_TOLERANCE) is not None]
    differ = len({(run.value(NSD_TOLERANCE), run.value(HIT_IOU)) for run in found}) > 1
    return found if differ else found[:1]


def optimism(runs: Sequence[Run], path: str) -> float | None:
    """By how much the best of equally good runs may overstate itself; None without intervals."""
    intervals = [run.value(f"{path}.ci95") for run in runs]
    if len(runs) < 2 or any(not ends or None in ends for ends in intervals):
        return None
    widths = [high - low for low, high in intervals]
    standard_error = sum(widths) / len(widths) / STANDARD_ERRORS_PER_INTERVAL
    return optimism_of_best_of(len(runs), standard_error)


def differences(runs: Sequence[Run]) -> list[Difference]:
    """Every comparable run against the first one, paired over cases, corrected by Holm.

    NSD of different tolerances is not compared.
    """
    if len(runs) < 2:
        return []
    first, *others = runs
    found = [
        (run, comparison)
        for run in others
        for comparison in compare_rows(run.value("cases"), first.value("cases"))
        if not comparison.metric.endswith("_nsd")
        or run.value(NSD_TOLERANCE) == first.value(NSD_TOLERANCE)
    ]
    corrected = holm([comparison.paired.p_value for _, comparison in found])
    return [Difference(*one, p) for one, p in zip(found, corrected, strict=True)]


def confusion_matrices(runs: Sequence[Run]) -> list[tuple[Run, list[list[int]]]]:
    """Each run's confusion matrix, where it holds a case: rows are references."""
    found = ((run, run.value("subtype.confusion_matrix") or []) for run in runs)
    return [(run, matrix) for run, matrix in found if any(map(sum, matrix))]


def groups(runs: Sequence[Run]) -> list[tuple[Run, str, str, int]]:
    """The groups of cases of each run: run, heading, path of the group and its number of cases."""
    return [
        (run, heading, f"{key}.{number}", group["n_cases"])
        for run in runs
        for key, heading in GROUPS.items()
        for number, group in enumerate(run.value(key) or [])
        if group["n_cases"]
    ]
