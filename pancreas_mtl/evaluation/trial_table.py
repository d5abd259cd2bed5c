"""The table of a comparison: every configuration's mean over its seeds, with two intervals.

The interval over cases draws test cases again, the same for all seeds: how much the figure owes to
these cases. The interval over seeds is Student's: how much it owes to the luck of training. The
difference to the first configuration, over the seeds that both have, is paired by case; it does
not know the luck of training, so a difference counts only where both intervals agree.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from pancreas_mtl.data.nifti import atomic_path
from pancreas_mtl.evaluation.summary import LAST_OF_ITS_OWN, SURE_OF_THE_NEXT
from pancreas_mtl.evaluation.trial_runs import seconds
from pancreas_mtl.evaluation.trials import Laboratory, Trial
from pancreas_mtl.metrics.intervals import Array, Estimate, bootstrap_ci, mean
from pancreas_mtl.metrics.subtype import ece, macro_f1, mean_auroc
from pancreas_mtl.types import NUM_SUBTYPES, UNKNOWN

Interval = tuple[float, float] | None


@dataclass(frozen=True)
class Outcome:
    """The test cases of one finished trial, sorted by name, N of them.

    A case without prediction counts as in an evaluation, as the worst there is.
    """

    trial: Trial
    whole_pancreas_dsc: Array  # (N,)
    lesion_dsc: Array  # (N,)
    subtype: Array  # (N,)
    predicted: Array  # (N,), UNKNOWN without prediction
    probabilities: Array  # (N, S)
    ranks: Array  # (N, S), the same but for cases without prediction; for AUROC
    in_set: Array  # (N,), whether the conformal set holds the subtype; NaN without sets
    set_size: Array  # (N,)
    has_subtypes: bool  # whether any was answered; without, no figure of theirs is told
    training_s: float
    revision: str  # of the code that trained it; empty where git is not at hand


@dataclass(frozen=True)
class Line:
    """One metric of one configuration."""

    configuration: str
    metric: str
    per_seed: dict[int, float]
    mean: float
    ci95_cases: Interval
    ci95_seeds: Interval
    difference: float | None  # to the first configuration
    difference_ci95: Interval


Score = Callable[..., Array]
"""From one trial's fields, with resamples on a leading axis, to a value per resample."""


METRICS: Mapping[str, tuple[Score, tuple[str, ...]]] = {
    "macro_f1": (macro_f1, ("subtype", "predicted")),
    "auroc": (mean_auroc, ("subtype", "ranks")),
    "lesion_dsc": (mean, ("lesion_dsc",)),
    "whole_pancreas_dsc": (mean, ("whole_pancreas_dsc",)),
    "coverage": (mean, ("in_set",)),
    "set_size": (mean, ("set_size",)),
}
OF_SUBTYPES = ("macro_f1", "auroc", "ece")
TITLES = {
    "macro_f1": "macro-F1",
    "auroc": "AUROC",
    "lesion_dsc": "lesion DSC",
    "whole_pancreas_dsc": "whole-pancreas DSC",
    "coverage": "coverage of sets",
    "set_size": "size of sets",
    "ece": "ECE",
}
COLUMNS = ("seeds", "mean", "95% over cases", "95% over seeds", "each seed")


def read_outcomes(trials: Sequence[Trial], laboratory: Laboratory) -> list[Outcome]:
    """The trials that are finished."""
    return [
        _read(trial, laboratory)
        for trial in trials
        if (laboratory.folder(trial) / "evaluation" / "metrics.json").exists()
    ]


def _read(trial: Trial, laboratory: Laboratory) -> Outcome:
    path = laboratory.folder(trial) / "evaluation" / "metrics.json"
    rows: list[dict[str, Any]] = json.loads(path.read_text())["cases"]
    rows.sort(key=lambda row: str(row["name"]))

    def column(key: str, missing: Any) -> Array:
        return np.array([missing if row[key] is None else row[key] for row in rows])

    def shares(missing: Array) -> Array:
        return np.array([row["subtype_probabilities"] or missing[row["subtype"]] for row in rows])

    sets = [row["conformal_set"] for row in rows]
    without = np.nan if all(members is None for members in sets) else None
    return Outcome(
        trial=trial,
        whole_pancreas_dsc=column("whole_pancreas_dsc", np.nan),
        lesion_dsc=column("lesion_dsc", np.nan),
        subtype=column("subtype", UNKNOWN),
        predicted=column("subtype_predicted", UNKNOWN),
        probabilities=shares(SURE_OF_THE_NEXT),
        ranks=shares(LAST_OF_ITS_OWN),
        in_set=np.array(
            [without or row["subtype"] in (s or ()) for s, row in zip(sets, rows, strict=True)],
            dtype=np.float64,
        ),
        set_size=np.array(
            [without or (NUM_SUBTYPES if s is None else len(s)) for s in sets], dtype=np.float64
        ),
        has_subtypes=any(row["subtype_predicted"] is not None for row in rows),
        training_s=seconds(trial, laboratory).get("train", np.nan),
        revision=_revision(laboratory.folder(trial) / "run" / "run.json"),
    )


def _revision(path: Path) -> str:
    git = json.loads(path.read_text())["git"] if path.exists() else None
    return str(git["label"]) if git else ""


def summarise(outcomes: Sequence[Outcome], *, resamples: int = 2000) -> list[Line]:
    """Every metric of every configuration, in the order of the outcomes."""
    groups: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        groups.setdefault(outcome.trial.configuration, []).append(outcome)
    first = next(iter(groups.values()), [])
    return [
        line
        for name, group in groups.items()
        for line in (
            *(_line(name, metric, group, first, resamples) for metric in METRICS),
            _ece_line(name, group),
        )
        if not np.isnan(line.mean) and _answers(group, line.metric)
    ]


def _answers(group: Sequence[Outcome], metric: str) -> bool:
    """Whether the networks answer what the metric is about; those without subtype head may not."""
    return metric not in OF_SUBTYPES or all(one.has_subtypes for one in group)


def _line(
    name: str, metric: str, group: Sequence[Outcome], first: Sequence[Outcome], resamples: int
) -> Line:
    score, keys = METRICS[metric]
    per_seed = {one.trial.seed: float(score(*(getattr(one, key) for key in keys))) for one in group}
    interval = partial(bootstrap_ci, strata=group[0].subtype, resamples=resamples)
    own = interval(_mean_over_seeds(score, len(keys)), *_arrays(group, keys))
    difference = Estimate(None, None)
    both = {one.trial.seed for one in group} & {one.trial.seed for one in first}
    if both and group is not first and _answers(first, metric):
        ours, theirs = ([o for o in some if o.trial.seed in both] for some in (group, first))
        difference = interval(
            _difference(score, len(keys), len(both)),
            *_arrays(ours, keys),
            *_arrays(theirs, keys),
        )
    return Line(
        name,
        metric,
        per_seed,
        float(np.mean(list(per_seed.values()))),
        own.ci95,
        student_interval(list(per_seed.values())),
        difference.mean,
        difference.ci95,
    )


def _arrays(group: Sequence[Outcome], keys: Sequence[str]) -> list[Array]:
    return [getattr(one, key) for one in group for key in keys]


def _mean_over_seeds(score: Score, num_keys: int) -> Score:
    """The score of several trials, their fields one after the other."""

    def averaged(*arrays: Array) -> Array:
        starts = range(0, len(arrays), num_keys)
        value: Array = np.mean([score(*arrays[i : i + num_keys]) for i in starts], axis=0)
        return value

    return averaged


def _difference(score: Score, num_keys: int, num_trials: int) -> Score:
    averaged = _mean_over_seeds(score, num_keys)
    split = num_keys * num_trials
    return lambda *arrays: averaged(*arrays[:split]) - averaged(*arrays[split:])


def _ece_line(name: str, group: Sequence[Outcome]) -> Line:
    """Without an interval over cases: resampling biases the ECE upwards."""
    per_seed = {one.trial.seed: ece(one.subtype, one.probabilities) for one in group}
    values = list(per_seed.values())
    return Line(
        name, "ece", per_seed, float(np.mean(values)), None, student_interval(values), None, None
    )


def student_interval(values: Sequence[float]) -> Interval:
    """The 95% interval of the mean over trainings; None for a single one."""
    if len(values) < 2:
        return None
    spread = float(np.std(values, ddof=1)) / np.sqrt(len(values))
    half = float(stats.t.ppf(0.975, len(values) - 1)) * spread
    centre = float(np.mean(values))
    return centre - half, centre + half


def render_markdown(lines: Sequence[Line], outcomes: Sequence[Outcome], *, title: str) -> str:
    """One table per metric, configurations as rows."""
    if not lines:
        return f"# {title}\n\nNo trial is finished yet.\n"
    minutes: dict[str, list[float]] = {}
    for one in outcomes:
        if not one.trial.members:
            minutes.setdefault(one.trial.configuration, []).append(one.training_s / 60)
    parts = [f"# {title}", f"{len(outcomes[0].subtype)} test cases, each predicted once per trial."]
    for metric, heading in TITLES.items():
        rows = [_row(line) for line in lines if line.metric == metric]
        if rows:
            cells = [heading, *COLUMNS, f"minus {lines[0].configuration}"]
            parts.append("\n".join([f"| {' | '.join(cells)} |", "|---" * len(cells) + "|", *rows]))
    times = [f"{name} {np.mean(values):.0f}" for name, values in minutes.items()]
    if times:
        parts.append(f"Minutes of training and validation: {', '.join(times)}.")
    parts += _revisions(outcomes)
    return "\n\n".join(parts) + "\n"


def _revisions(outcomes: Sequence[Outcome]) -> list[str]:
    """Which code trained what, where it was not the same for all."""
    trained: dict[str, list[str]] = {}
    for one in outcomes:
        if not one.trial.members:
            trained.setdefault(one.revision or "unknown", []).append(one.trial.name)
    if len(trained) < 2:
        return []
    groups = [f"{revision} ({', '.join(names)})" for revision, names in trained.items()]
    return [f"Trained by different revisions of the code: {'; '.join(groups)}."]


def _row(line: Line) -> str:
    each = " ".join(f"{value:.3f}" for value in line.per_seed.values())
    minus = "" if line.difference is None else f"{line.difference:+.3f}"
    cells = [
        line.configuration,
        str(len(line.per_seed)),
        f"**{line.mean:.3f}**",
        _interval(line.ci95_cases),
        _interval(line.ci95_seeds),
        each,
        f"{minus} {_interval(line.difference_ci95, sign='+')}".strip(),
    ]
    return f"| {' | '.join(cells)} |"


def _interval(interval: Interval, *, sign: str = "") -> str:
    return "" if interval is None else f"[{interval[0]:{sign}.3f}, {interval[1]:{sign}.3f}]"


def write_csv(lines: Sequence[Line], path: Path) -> None:
    """The same as the tables, a row per configuration and metric."""
    header = ["configuration", "metric", "seeds", "mean", "cases_low", "cases_high", "seeds_low"]
    header += ["seeds_high", "difference", "difference_low", "difference_high", "per_seed"]
    with atomic_path(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        for line in lines:
            values = [
                line.mean,
                *(line.ci95_cases or (None, None)),
                *(line.ci95_seeds or (None, None)),
                line.difference,
                *(line.difference_ci95 or (None, None)),
            ]
            cells = ["" if value is None else f"{value:.6f}" for value in values]
            each = "|".join(f"{value:.6f}" for value in line.per_seed.values())
            writer.writerow([line.configuration, line.metric, len(line.per_seed), *cells, each])
