"""The table of a multirun: every job, and the mean over seeds with its interval.

Scores are those of each run's `metrics.json`, about its own validation cases. The interval is
Student's over seeds: how far another seed may lead, not how far other cases may.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from pancreas_mtl.data.files import write_csv
from pancreas_mtl.evaluation.trial_table import student_interval
from pancreas_mtl.types import Job

SCORES = {
    "whole_pancreas_dsc": ("whole_pancreas", "dsc"),
    "pancreas_dsc": ("pancreas", "dsc"),
    "lesion_dsc": ("lesion", "dsc"),
    "macro_f1": ("subtype", "macro_f1"),
}
HEADINGS = {
    "whole_pancreas_dsc": "whole DSC",
    "pancreas_dsc": "pancreas DSC",
    "lesion_dsc": "lesion DSC",
    "macro_f1": "macro-F1",
}
SEED = "seed="
STATES = {0: "done", None: "killed"}


@dataclass(frozen=True)
class Group:
    """Jobs that differ by their seed alone; scores that no job has are left out."""

    name: str
    num_jobs: int
    scores: Mapping[str, tuple[float, ...]]  # one value per finished job


def report_jobs(jobs: Sequence[Job], folder: Path) -> str:
    """Write `jobs.csv` and `seeds.csv` into the folder; the tables as text for the terminal."""
    scores = {job.number: read_scores(job) for job in jobs}
    groups = group_by_seed(jobs, scores)
    _write_jobs(jobs, scores, folder / "jobs.csv")
    _write_groups(groups, folder / "seeds.csv")
    text = io.StringIO()
    console = Console(file=text, width=140)
    for table in (_jobs_table(jobs, scores), _groups_table(groups)):
        table.box = box.ASCII2
        console.print(table)
    return f"{text.getvalue()}{folder / 'jobs.csv'}\n{folder / 'seeds.csv'}"


def read_scores(job: Job) -> dict[str, float]:
    """The scores of a finished job; none for the others, whatever an earlier run has left there."""
    if job.exit_code != 0 or job.output_dir is None:
        return {}
    try:
        document = json.loads((job.output_dir / "metrics.json").read_text())
        found = {name: document[part][key]["mean"] for name, (part, key) in SCORES.items()}
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return {name: float(value) for name, value in found.items() if value is not None}


def group_by_seed(jobs: Sequence[Job], scores: Mapping[int, Mapping[str, float]]) -> list[Group]:
    """Put the jobs together whose overrides are the same but for the seed, in their order."""
    together: dict[str, list[Job]] = {}
    for job in jobs:
        together.setdefault(_without_seed(job), []).append(job)
    groups = []
    for name, members in together.items():
        found = {
            key: [scores[j.number][key] for j in members if key in scores[j.number]]
            for key in SCORES
        }
        kept = {key: tuple(values) for key, values in found.items() if values}
        groups.append(Group(name, len(members), kept))
    return groups


def _without_seed(job: Job) -> str:
    return " ".join(line for line in job.overrides if not line.startswith(SEED)) or "(defaults)"


def _varied(jobs: Sequence[Job]) -> list[list[str]]:
    """The overrides of each job, without those that all jobs share."""
    shared = set.intersection(*(set(job.overrides) for job in jobs)) if len(jobs) > 1 else set()
    return [[line for line in job.overrides if line not in shared] for job in jobs]


def _state(job: Job) -> str:
    return STATES.get(job.exit_code, f"failed ({job.exit_code})")


def _jobs_table(jobs: Sequence[Job], scores: Mapping[int, Mapping[str, float]]) -> Table:
    columns = ("job", "overrides", "state", *HEADINGS.values())
    table = Table(*columns, title="jobs", title_justify="left")
    for job, overrides in zip(jobs, _varied(jobs), strict=True):
        values = scores[job.number]
        cells = [f"{values[key]:.3f}" if key in values else "-" for key in SCORES]
        what = " ".join(overrides) + (f"\n{job.error}" if job.error else "")
        table.add_row(str(job.number), what, _state(job), *cells)
    return table


def _groups_table(groups: Sequence[Group]) -> Table:
    title = "mean over seeds [95% interval]"
    table = Table("overrides", "done", *HEADINGS.values(), title=title, title_justify="left")
    shared = set.intersection(*(set(group.name.split(" ")) for group in groups))
    for group in groups:
        name = " ".join(line for line in group.name.split(" ") if line not in shared) or group.name
        done = max((len(values) for values in group.scores.values()), default=0)
        cells = [_cell(group.scores.get(key, ())) for key in SCORES]
        table.add_row(name, f"{done} of {group.num_jobs}", *cells)
    return table


def _cell(values: Sequence[float]) -> str:
    if not values:
        return "-"
    interval = student_interval(values)
    bounds = "" if interval is None else f" [{interval[0]:.3f}, {interval[1]:.3f}]"
    return f"{np.mean(values):.3f}{bounds}"


def _write_jobs(jobs: Sequence[Job], scores: Mapping[int, Mapping[str, float]], path: Path) -> None:
    header = ["job", "overrides", "state", "error", "output_dir", *SCORES]
    rows = [
        [
            job.number,
            " ".join(job.overrides),
            _state(job),
            job.error or "",
            job.output_dir or "",
            *(scores[job.number].get(key, "") for key in SCORES),
        ]
        for job in jobs
    ]
    write_csv(path, header, rows)


def _write_groups(groups: Sequence[Group], path: Path) -> None:
    header = ["overrides", "metric", "jobs", "mean", "ci95_low", "ci95_high"]
    rows = []
    for group in groups:
        for key, values in group.scores.items():
            low, high = student_interval(values) or ("", "")
            rows.append([group.name, key, len(values), float(np.mean(values)), low, high])
    write_csv(path, header, rows)
