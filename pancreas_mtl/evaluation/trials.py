"""Trials: one configuration, one seed; trained, predicted and evaluated by the commands themselves.

Each trial has a folder of its own, named by its configuration and seed:

    <output_dir>/data/  cache/
    <output_dir>/trials/<configuration>/seed<S>/{run,predictions,evaluation,trial.json,log.txt}

A step whose product is there is done; a training that was interrupted goes on at its checkpoint. A
trial is locked while it runs, so several processes can work on the same folder.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from pancreas_mtl.errors import UsageError

log = logging.getLogger(__name__)
ROOT = Path(__file__).resolve().parents[2]  # where train.py and predict.py lie
OUTPUT = "output_dir"
PLACEHOLDER = re.compile(r"\{(\w+)\}")
LIBRARIES = ("OMP", "OPENBLAS", "MKL")


@dataclass(frozen=True)
class Trial:
    """One configuration with one seed; `overrides` are what `train.py` is given.

    In them `{NAME}` stands for the bundle of another configuration with the same seed, from which
    a second stage starts, and `{output_dir}` for the folder of all trials. An ensemble trains
    nothing: it averages the `members`, configurations of the same seed.
    """

    configuration: str
    seed: int
    overrides: tuple[str, ...]
    members: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """As in messages."""
        return f"{self.configuration}/seed{self.seed}"

    @property
    def needs(self) -> set[str]:
        """The configurations that have to be trained before."""
        named = {name for override in self.overrides for name in PLACEHOLDER.findall(override)}
        return {*self.members, *named} - {OUTPUT}


@dataclass(frozen=True)
class Laboratory:
    """The folder of all trials, and the threads that each may use."""

    output_dir: Path
    threads: int = 1

    def folder(self, trial: Trial) -> Path:
        """Where a trial lies."""
        return self.output_dir / "trials" / trial.name


@dataclass(frozen=True)
class Step:
    """One command, done when its product exists."""

    name: str
    arguments: tuple[str, ...]
    product: Path


def list_trials(
    configurations: Mapping[str, Sequence[str]],
    seeds: Sequence[int],
    shared: Sequence[str],
    *,
    ensembles: Mapping[str, Sequence[str]] | None = None,
    only: Sequence[str] | None = None,
) -> list[Trial]:
    """Every configuration with every seed, seed by seed, so that a partial table is fair.

    What needs others comes after them.

    Args:
        configurations: overrides by name.
        seeds: of the trainings.
        shared: overrides that come first in all configurations.
        ensembles: names of their members by name.
        only: the names that are wanted; None for all.

    Raises:
        UsageError: a name in `only` that does not exist, or no seed.
    """
    ensembles = ensembles or {}
    names = [*configurations, *ensembles]
    if not seeds:
        raise UsageError("seeds=[]: give at least one")
    trained = [
        Trial(name, seed, (*shared, *overrides))
        for seed in seeds
        for name, overrides in configurations.items()
    ]
    averaged = [
        Trial(name, seed, (), tuple(members))
        for seed in seeds
        for name, members in ensembles.items()
    ]
    everything = [*trained, *averaged]
    for name in {*(only or ())}.union(*(trial.needs for trial in everything)):
        if name not in names:
            raise UsageError(f"no configuration {name}: choose from {', '.join(names)}")
    return [t for t in everything if only is None or t.configuration in only]


def run_trials(trials: Sequence[Trial], laboratory: Laboratory, *, jobs: int) -> list[str]:
    """Run what is not done yet, `jobs` at once; one line per trial that failed.

    Raises:
        UsageError: a trial's folder holds one with other overrides.
    """
    for trial in trials:
        _claim(trial, laboratory.folder(trial))
    outcomes: list[str | None] = []
    for some in ([t for t in trials if not t.needs], [t for t in trials if t.needs]):
        with ThreadPoolExecutor(max(1, jobs)) as pool:
            outcomes += pool.map(lambda trial: _run(trial, laboratory), some)
    return [outcome for outcome in outcomes if outcome is not None]


def steps(trial: Trial, laboratory: Laboratory) -> list[Step]:
    """The commands of a trial, in order, as one would type them."""
    data, folder = laboratory.output_dir / "data", laboratory.folder(trial)
    predictions, evaluation = folder / "predictions", folder / "evaluation"
    members = trial.members or (trial.configuration,)
    predict = (
        "predict.py",
        f"model=[{','.join(str(_bundle(name, folder)) for name in members)}]",
        f"input={data / 'test'}",
        f"output_dir={predictions}",
    )
    evaluate = (
        "-m",
        "pancreas_mtl.evaluate",
        f"predictions={predictions}",
        f"references={data / 'references'}",
        f"output_dir={evaluation}",
        f"workers={laboratory.threads}",
    )
    return [
        *([] if trial.members else [_training(trial, laboratory)]),
        Step("predict", predict, predictions / "run.json"),
        Step("evaluate", evaluate, evaluation / "metrics.json"),
    ]


def _training(trial: Trial, laboratory: Laboratory) -> Step:
    """The training, its placeholders filled in."""
    home, folder = laboratory.output_dir, laboratory.folder(trial)

    def meant(match: re.Match[str]) -> str:
        return str(home if match[1] == OUTPUT else _bundle(match[1], folder))

    overrides = [PLACEHOLDER.sub(meant, override) for override in trial.overrides]
    has_data = any(override.startswith("data=") for override in overrides)
    arguments = (
        "train.py",
        *([] if has_data else ["data=quiz", f"data.root={home / 'data'}"]),
        f"paths.cache={home / 'cache'}",
        "audit=false",
        *overrides,
        f"seed={trial.seed}",
        f"output_dir={folder / 'run'}",
        "resume=true",
    )
    return Step("train", arguments, folder / "run" / "report.html")


def _bundle(configuration: str, folder: Path) -> Path:
    """The bundle of another configuration, of the same seed as the trial in `folder`."""
    return folder.parents[1] / configuration / folder.name / "run" / "bundle"


def seconds(trial: Trial, laboratory: Laboratory) -> dict[str, float]:
    """How long each step took, all attempts together."""
    path = laboratory.folder(trial) / "seconds.jsonl"
    total: dict[str, float] = {}
    for line in path.read_text().splitlines() if path.exists() else []:
        name, took = json.loads(line)
        total[name] = total.get(name, 0.0) + took
    return total


def _claim(trial: Trial, folder: Path) -> None:
    """Say in the folder what it holds; refuse one that holds something else."""
    path = folder / "trial.json"
    wanted: dict[str, Any] = {"seed": trial.seed, "overrides": list(trial.overrides)}
    if trial.members:
        wanted["members"] = list(trial.members)
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(wanted, indent=1) + "\n")
    elif json.loads(path.read_text()) != wanted:
        raise UsageError(
            f"{folder} holds a trial with other overrides (see trial.json): remove it, give the "
            "configuration another name, or give another output_dir"
        )


def _run(trial: Trial, laboratory: Laboratory) -> str | None:
    """Run the steps that are missing; what went wrong, None if nothing did."""
    folder = laboratory.folder(trial)
    with _lock(folder) as lock:
        if lock is None:
            log.info("%s: another process works on it", trial.name)
            return None
        for step in steps(trial, laboratory):
            if step.product.exists():
                continue
            log.info("%s: %s", trial.name, step.name)
            start_s = time.perf_counter()
            code = _call(step, folder, laboratory.threads, lock)
            took = round(time.perf_counter() - start_s, 1)
            with (folder / "seconds.jsonl").open("a") as file:
                file.write(json.dumps([step.name, took]) + "\n")
            if code:
                return (
                    f"{trial.name}: {step.name} ended with exit code {code}; see {folder}/log.txt"
                )
    return None


def _call(step: Step, folder: Path, threads: int, lock: IO[str]) -> int:
    """Run one command; it holds the lock too, in case that it outlives this process."""
    environment = os.environ | {f"{library}_NUM_THREADS": str(threads) for library in LIBRARIES}
    with (folder / "log.txt").open("a") as output:
        return subprocess.run(
            [sys.executable, *step.arguments],
            cwd=ROOT,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            pass_fds=[lock.fileno()],
            check=False,
        ).returncode


@contextmanager
def _lock(folder: Path) -> Iterator[IO[str] | None]:
    """The folder's lock, or None while another process holds it."""
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
        else:
            yield file
