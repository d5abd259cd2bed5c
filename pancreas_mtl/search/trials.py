"""One trial: a training in a process of its own, watched by the rows of its `metrics.csv`."""

from __future__ import annotations

import csv
import logging
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from optuna.study import Study
from optuna.trial import Trial, TrialState

from pancreas_mtl.errors import CaseError, UsageError
from pancreas_mtl.ranks import environment_alone
from pancreas_mtl.search.results import write_results
from pancreas_mtl.search.space import Space, suggest
from pancreas_mtl.search.study import DONE, Begun, SweepConfig, count, next_trial

log = logging.getLogger(__name__)

POLL_S = 2.0
PATIENCE_S = 120.0  # for a training to stop after SIGTERM
TRAIN = Path(__file__).resolve().parents[2] / "train.py"
BAD_USAGE, INTERRUPTED = 2, 75  # exit codes of train.py
MAX_FAILURES = 3  # in a row: then the cause is not the trial


def run_sweep(
    study: Study, space: Space, overrides: Sequence[str], folder: Path, config: SweepConfig
) -> None:
    """Run trials until the study has all that are wanted; results are written after each.

    Raises:
        UsageError: the training refuses its configuration.
        CaseError: MAX_FAILURES trials in a row failed.
    """
    failures = 0
    while begun := next_trial(study, folder, config):
        values = [f"{key}={value}" for key, value in suggest(begun.trial, space).items()]
        where = f"{count(study, *DONE)} of {config.trials} done{time_left(study, config.trials)}"
        log.info("trial %d, %s: %s", begun.trial.number + 1, where, " ".join(values))
        state = _finish(study, begun, [*overrides, *values], config.objective)
        write_results(study, folder)
        failures = 0 if state in DONE else failures + 1
        if failures == MAX_FAILURES:
            raise CaseError(f"{failures} trials in a row failed: see {begun.folder}/trial.log")


def time_left(study: Study, wanted: int) -> str:
    """`, about 95 minutes left`, from the mean time of the trials that are done; "" before any.

    As many trials as are at work now are taken to be so to the end.
    """
    done = study.get_trials(deepcopy=False, states=DONE)
    seconds = [trial.duration.total_seconds() for trial in done if trial.duration]
    if not seconds:
        return ""
    at_once = max(1, count(study, TrialState.RUNNING))
    left_s = sum(seconds) / len(seconds) * (wanted - len(done)) / at_once
    return f", about {left_s / 60:.0f} minutes left"


def _finish(study: Study, begun: Begun, overrides: list[str], objective: str) -> TrialState:
    with begun.alive:
        try:
            state, value = run_trial(
                begun.trial, overrides, begun.folder, objective=objective, alive=begun.alive
            )
        except UsageError:
            study.tell(begun.trial, state=TrialState.FAIL)
            raise
        if state.is_finished():
            study.tell(begun.trial, value if state == TrialState.COMPLETE else None, state)
    log.info("trial %d: %s, %s", begun.trial.number + 1, state.name.lower(), value)
    return state


def run_trial(
    trial: Trial, overrides: Sequence[str], folder: Path, *, objective: str, alive: IO[str]
) -> tuple[TrialState, float | None]:
    """Train until the end, or until the pruner stops it.

    Args:
        trial: gets a value for every validated epoch.
        overrides: of the training, complete but for its folder.
        folder: of the run; its `trial.log` gets what the training prints.
        objective: the column of `metrics.csv` whose highest value is the trial's.
        alive: the open lock of the trial, which the training holds as well.

    Returns:
        How the trial ended, and its best value unless it failed; RUNNING where its process was
        killed or interrupted, so that it is taken up again.

    Raises:
        UsageError: the training refuses its configuration, or has no such objective.
    """
    arguments = [*overrides, f"output_dir={folder}", "resume=true"]
    with (folder / "trial.log").open("a") as output:
        process = subprocess.Popen(
            [sys.executable, str(TRAIN), *arguments],
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment_alone(),
            pass_fds=[alive.fileno()],
        )
    try:
        pruned = _watch(process, trial, folder / "metrics.csv", objective)
    except BaseException:
        _stop(process)
        raise
    if process.returncode == BAD_USAGE:
        raise UsageError(_last_line(folder / "trial.log"))
    values = read_curve(folder / "metrics.csv", objective).values()
    if pruned:
        return TrialState.PRUNED, max(values)
    if process.returncode < 0 or process.returncode == INTERRUPTED:
        log.warning("%s: its process was killed", folder.name)
        return TrialState.RUNNING, None
    if process.returncode != 0:
        log.warning("%s: failed: %s", folder.name, _last_line(folder / "trial.log"))
        return TrialState.FAIL, None
    if not values:
        raise UsageError(f"sweep.objective={objective}: {folder}/metrics.csv has no values of it")
    return TrialState.COMPLETE, max(values)


def read_curve(metrics_csv: Path, objective: str) -> dict[int, float]:
    """The objective by epoch, as far as it has been validated."""
    if not metrics_csv.exists():
        return {}
    with metrics_csv.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row.get(objective)]
    return {int(float(row["epoch"])): float(row[objective]) for row in rows}


def _watch(process: subprocess.Popen[bytes], trial: Trial, metrics_csv: Path, name: str) -> bool:
    """Report every new epoch until the process ends; True if the pruner ended it."""
    reported: set[int] = set()
    while True:
        try:
            process.wait(POLL_S)
        except subprocess.TimeoutExpired:
            ended = False
        else:
            ended = True
        for epoch, value in sorted(read_curve(metrics_csv, name).items()):
            if epoch not in reported:
                reported.add(epoch)
                trial.report(value, epoch)
                if not ended and trial.should_prune():
                    _stop(process)
                    return True
        if ended:
            return False


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(PATIENCE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _last_line(path: Path) -> str:
    lines = path.read_text(errors="replace").strip().splitlines()
    return lines[-1] if lines else "no output"
