"""Two evaluations of the same cases, paired: which run is better, and is it more than luck."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from pancreas_mtl.data.files import UNREADABLE, atomic_path, reason
from pancreas_mtl.errors import UsageError
from pancreas_mtl.evaluation.results import SCHEMA, Metrics
from pancreas_mtl.evaluation.task import Task
from pancreas_mtl.metrics.comparison import (
    PairedDifference,
    holm,
    optimism_of_best_of,
    paired_difference,
)
from pancreas_mtl.metrics.intervals import mean
from pancreas_mtl.metrics.subtype import macro_f1
from pancreas_mtl.types import UNKNOWN

Row = Mapping[str, Any]
Pair = tuple[Row, Row]
MEANS = ("whole_pancreas_dsc", "whole_pancreas_nsd", "lesion_dsc", "lesion_nsd")
REFERENCE_VOLUMES = ("whole_pancreas_reference_volume_ml", "lesion_reference_volume_ml")
SAME_VOLUME = 1e-3  # relative: headers round the spacing
STANDARD_ERRORS_PER_INTERVAL = 2 * 1.96


@dataclass(frozen=True)
class Comparison:
    """One metric of this run and of another one, over the cases that both have.

    `p_corrected` is Holm's, over all metrics that were compared. `optimism` is by how much the
    better of two equal runs overstates itself on these cases; None for a single case.
    """

    metric: str
    n_cases: int
    value: float
    other: float
    paired: PairedDifference
    p_corrected: float
    optimism: float | None


def read_cases(path: Path, names: Collection[str], *, task: Task) -> list[Row]:
    """Read the named cases of a `metrics.json`, or of the one in a folder.

    Raises:
        UsageError: no such file, none of this version, none of the cases in it, or an NSD of
            another tolerance than the task's.
    """
    path = path / "metrics.json" if path.is_dir() else path
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if document["schema"] != SCHEMA:
            raise ValueError(f"schema {document['schema']} instead of {SCHEMA}")
        rows = [row for row in document["cases"] if row["name"] in names]
        tolerance_mm = document["lesion"]["nsd_tolerance_mm"]
    except UNREADABLE as error:
        raise UsageError(
            f"compare={path}: no metrics.json of this version ({reason(error)}): evaluate again"
        ) from None
    if not rows:
        raise UsageError(f"compare={path}: shares no case with the references: choose another run")
    if tolerance_mm != task.nsd_tolerance_mm:
        raise UsageError(
            f"compare={path}: its NSD has a tolerance of {tolerance_mm:g} mm, here it is "
            f"{task.nsd_tolerance_mm:g}: give task.nsd_tolerance_mm={tolerance_mm:g}, or evaluate "
            "the other one again"
        )
    return rows


def compare(metrics: Metrics, others: Sequence[Row], *, task: Task) -> list[Comparison]:
    """Compare an evaluation with the cases of another one, metric by metric.

    A metric that one of them lacks for all cases is left out.

    Raises:
        UsageError: a case was compared with another reference there.
    """
    rows = [case.as_json() for case in metrics.cases]
    for row, other in _of_one_name(rows, others):
        if not _same_reference(row, other):
            raise UsageError(
                f"compare: {row['name']} has another reference there, of another subtype or "
                "volume: evaluate both runs against the same references"
            )
    return compare_rows(rows, others, resamples=task.bootstrap_resamples)


def compare_rows(
    rows: Sequence[Row], others: Sequence[Row], *, resamples: int = 2000
) -> list[Comparison]:
    """The same for the cases of two `metrics.json`; pairs of different references are left out."""
    pairs = [pair for pair in _of_one_name(rows, others) if _same_reference(*pair)]
    found = [*(_of_means(key, pairs, resamples) for key in MEANS), _of_macro_f1(pairs, resamples)]
    comparisons = [one for one in found if one is not None]
    corrected = holm([one.paired.p_value for one in comparisons])
    return [replace(one, p_corrected=p) for one, p in zip(comparisons, corrected, strict=True)]


def _of_means(key: str, pairs: Sequence[Pair], resamples: int) -> Comparison | None:
    values = [(a[key], b[key]) for a, b in pairs if _both(key, a, b)]
    if not values:
        return None
    first, second = np.array(values, dtype=np.float64).T
    paired = paired_difference(mean, first, second, resamples=resamples)
    return _comparison(key, len(values), float(first.mean()), float(second.mean()), paired)


def _of_macro_f1(pairs: Sequence[Pair], resamples: int) -> Comparison | None:
    pairs = [(a, b) for a, b in pairs if _both("subtype", a, b)]
    answers = np.array([[_answer(a), _answer(b)] for a, b in pairs], dtype=np.int64)
    if (answers.reshape(-1, 2) == UNKNOWN).all(axis=0).any():
        return None
    references = np.array([a["subtype"] for a, _ in pairs], dtype=np.int64)
    paired = paired_difference(
        lambda of_one, truth: macro_f1(truth, of_one),
        answers[:, 0],
        answers[:, 1],
        references,
        strata=references,
        resamples=resamples,
    )
    value, other = (float(macro_f1(references, answers[:, run])) for run in (0, 1))
    return _comparison("macro_f1", len(pairs), value, other, paired)


def _comparison(
    metric: str, n_cases: int, value: float, other: float, paired: PairedDifference
) -> Comparison:
    """The optimism follows from the spread of the difference of two equal runs."""
    optimism = None
    if paired.ci95 is not None:
        of_difference = (paired.ci95[1] - paired.ci95[0]) / STANDARD_ERRORS_PER_INTERVAL
        optimism = optimism_of_best_of(2, of_difference / np.sqrt(2))
    return Comparison(metric, n_cases, value, other, paired, paired.p_value, optimism)


def _of_one_name(rows: Sequence[Row], others: Sequence[Row]) -> list[Pair]:
    by_name = {row["name"]: row for row in others}
    return [(row, by_name[row["name"]]) for row in rows if row["name"] in by_name]


def _same_reference(first: Row, second: Row) -> bool:
    """As far as subtype and volumes tell; what one of them lacks tells nothing."""
    return all(
        np.isclose(float(first[key]), float(second[key]), rtol=SAME_VOLUME)
        for key in ("subtype", *REFERENCE_VOLUMES)
        if _both(key, first, second)
    )


def _both(key: str, first: Row, second: Row) -> bool:
    return first.get(key) is not None and second.get(key) is not None


def _answer(row: Row) -> int:
    answer = row["subtype_predicted"]
    return UNKNOWN if answer is None else int(answer)


def write_comparisons(comparisons: Sequence[Comparison], path: Path) -> None:
    """Write them as JSON, all at once or not at all."""
    text = json.dumps([asdict(one) for one in comparisons], indent=1, allow_nan=False) + "\n"
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
