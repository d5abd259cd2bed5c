"""The study: one journal file that any number of processes and nodes add their trials to.

A trial lives as long as a process holds the lock on its folder. A trial that is unfinished without
being held was killed: the next process counts it as failed and asks for the same values again, in
the same folder, where training goes on from its last checkpoint.
"""

from __future__ import annotations

import fcntl
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

import optuna
from optuna.pruners import MedianPruner
from optuna.samplers import TPESampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.study import Study
from optuna.trial import Trial, TrialState

from pancreas_mtl.data.files import make_folder
from pancreas_mtl.errors import UsageError

log = logging.getLogger(__name__)

DONE = (TrialState.COMPLETE, TrialState.PRUNED)
NAME = "sweep"
FOLDER, FACTS = "folder", "facts"  # attributes of a trial and of the study


@dataclass(frozen=True)
class SweepConfig:
    """How a space is searched; explained in `conf/sweep/`."""

    space: dict[str, Any]
    trials: int
    startup_trials: int
    warmup_epochs: int
    seed: int
    objective: str


def open_study(folder: Path, config: SweepConfig, overrides: list[str]) -> Study:
    """Open the study of a folder, or make it.

    Raises:
        UsageError: it holds a study over another space, or with other settings of the training.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    path = str(make_folder(folder) / "journal.log")
    study = optuna.create_study(
        storage=JournalStorage(JournalFileBackend(path, JournalFileOpenLock(path))),
        study_name=NAME,
        direction="maximize",
        load_if_exists=True,
        pruner=MedianPruner(config.startup_trials, config.warmup_epochs),
    )
    facts = {"space": config.space, "objective": config.objective, "overrides": sorted(overrides)}
    before = study.user_attrs.get(FACTS)
    if before is None:
        study.set_user_attr(FACTS, facts)
    elif before != facts:
        changed = ", ".join(key for key in facts if before[key] != facts[key])
        raise UsageError(
            f"output_dir={folder} holds a study with other {changed}; give another one"
        )
    return study


class Begun(NamedTuple):
    """A trial at work: its folder, and the lock that keeps it alive while it is open."""

    trial: Trial
    folder: Path
    alive: IO[str]


def next_trial(study: Study, folder: Path, config: SweepConfig) -> Begun | None:
    """Begin a trial; None where all that are wanted are done or at work in some process."""
    with _one_at_a_time(folder):
        _requeue_killed(study, folder)
        if count(study, *DONE, TrialState.RUNNING) >= config.trials:
            return None
        trial = study.ask()
        name = trial.user_attrs.get(FOLDER, f"trial{trial.number:04d}")
        trial.set_user_attr(FOLDER, name)
        (folder / name).mkdir(exist_ok=True)
        alive = (folder / name / ".alive").open("w")
        fcntl.flock(alive, fcntl.LOCK_EX)
    study.sampler = TPESampler(
        n_startup_trials=config.startup_trials,
        seed=config.seed + trial.number,  # so no two processes draw the same values
        multivariate=False,
        constant_liar=True,
    )
    return Begun(trial, folder / name, alive)


def _requeue_killed(study: Study, folder: Path) -> None:
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        name = trial.user_attrs.get(FOLDER)
        if name is None or not _is_held(folder / name):
            log.warning("trial %d was killed: its values are tried again", trial.number)
            study.tell(trial.number, state=TrialState.FAIL)
            if trial.params:
                study.enqueue_trial(trial.params, user_attrs={FOLDER: name})


def count(study: Study, *states: TrialState) -> int:
    """The trials in any of these states, of all processes."""
    return len(study.get_trials(deepcopy=False, states=states))


@contextmanager
def _one_at_a_time(folder: Path) -> Iterator[None]:
    with (folder / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _is_held(folder: Path) -> bool:
    try:
        with (folder / ".alive").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False
