"""Runs trials: what is done is kept, what was interrupted goes on, nothing is mixed up.

A step whose product is there is done; a training that was interrupted goes on at its checkpoint. A
trial is locked while it runs, so several processes can work on the same folder. What needs others
waits until they are finished, and keeps a note of which bundles it was made from. Whoever stops
this process stops the running steps with it.
"""

from __future__ import annotations

import fcntl
import json
import logging
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from pancreas_mtl.data.files import write_json
from pancreas_mtl.errors import UsageError
from pancreas_mtl.evaluation.trials import Laboratory, Step, Trial, bundle_of, steps
from pancreas_mtl.inference.bundle import bundle_digest
from pancreas_mtl.interruption import EXIT_CODE
from pancreas_mtl.ranks import environment_alone

log = logging.getLogger(__name__)
ROOT = Path(__file__).resolve().parents[2]  # where train.py and predict.py lie
LIBRARIES = ("OMP", "OPENBLAS", "MKL")
MADE_FROM = "made_from.json"


def run_trials(trials: Sequence[Trial], laboratory: Laboratory, *, jobs: int) -> list[str]:
    """Run what is not done yet, `jobs` at once; one line per trial that failed.

    Args:
        trials: all that any of them needs among them.
        laboratory: where they lie.
        jobs: at once.

    Raises:
        UsageError: a trial's folder holds one with other overrides.
    """
    for trial in trials:
        _claim(trial, laboratory.folder(trial))
    outcomes: list[str | None] = []
    left = list(trials)
    processes = _Processes()
    while left:
        names = {trial.configuration for trial in left}
        ready = [t for t in left if not t.needs & names] or left  # or they need each other
        with ThreadPoolExecutor(max(1, jobs)) as pool:
            try:
                outcomes += pool.map(lambda one: _run(one, trials, laboratory, processes), ready)
            except BaseException:  # Ctrl-C, or a signal
                processes.stop()
                raise
        left = [trial for trial in left if trial not in ready]
    return [outcome for outcome in outcomes if outcome is not None]


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
        wanted |= {"members": list(trial.members), "folds": trial.folds}
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_json(path, wanted)
    elif json.loads(path.read_text()) != wanted:
        raise UsageError(
            f"{folder} holds a trial with other overrides (see trial.json): remove it, give the "
            "configuration another name, or give another output_dir"
        )


class _Processes:
    """The running steps; after `stop` they end, a training with its checkpoint, and none begins."""

    def __init__(self) -> None:
        self._running: set[subprocess.Popen[bytes]] = set()
        self._stopped = False
        self._lock = threading.Lock()

    def run(self, arguments: Sequence[str], **options: Any) -> int:
        """The exit code of a Python process with these arguments."""
        with self._lock:
            if self._stopped:
                return EXIT_CODE
            process = subprocess.Popen([sys.executable, *arguments], cwd=ROOT, **options)
            self._running.add(process)
        code = process.wait()
        with self._lock:
            self._running.remove(process)
        return code

    def stop(self) -> None:
        with self._lock:
            self._stopped = True
            for process in self._running:
                process.terminate()


def _run(
    trial: Trial, trials: Sequence[Trial], laboratory: Laboratory, processes: _Processes
) -> str | None:
    """Run the steps that are missing; what went wrong, None if nothing did."""
    folder = laboratory.folder(trial)
    with _lock(folder) as lock:
        if lock is None:
            log.info("%s: another process works on it", trial.name)
            return None
        needed = [t for t in trials if t.seed == trial.seed and t.configuration in trial.needs]
        if problem := _problem(trial, needed, laboratory):
            return f"{trial.name}: {problem}"
        for step in steps(trial, laboratory):
            if step.is_done:
                continue
            log.info("%s: %s", trial.name, step.name)
            if code := _call(step, folder, laboratory.threads, lock, processes):
                return (
                    f"{trial.name}: {step.name} ended with exit code {code}; see {folder}/log.txt"
                )
    return None


def _problem(trial: Trial, needed: Sequence[Trial], laboratory: Laboratory) -> str | None:
    """Why it cannot begin, or is not what it was to be; its folder notes what it is made from."""
    folder = laboratory.folder(trial)
    for one in needed:
        if not steps(one, laboratory)[0].is_done:
            return f"needs {one.name}, which is not finished; then the same command goes on"
    bundles = {one.configuration: bundle_of(one.configuration, folder) for one in needed}
    made_from = {name: bundle_digest(bundle) for name, bundle in bundles.items()}
    path = folder / MADE_FROM
    if bundles and not path.exists():
        write_json(path, made_from)
    elif bundles and json.loads(path.read_text(encoding="utf-8")) != made_from:
        return f"was made from other bundles of {', '.join(bundles)}; remove {folder}"
    return None


def _call(step: Step, folder: Path, threads: int, lock: IO[str], processes: _Processes) -> int:
    """Run one command and note how long it took, also if it is interrupted.

    It holds the lock too, in case that it outlives this process.
    """
    shares = {f"{library}_NUM_THREADS": str(threads) for library in LIBRARIES}
    start_s = time.perf_counter()
    try:
        with (folder / "log.txt").open("a") as output:
            return processes.run(
                step.arguments,
                env=environment_alone() | shares,
                stdout=output,
                stderr=subprocess.STDOUT,
                pass_fds=[lock.fileno()],
            )
    finally:
        took = round(time.perf_counter() - start_s, 1)
        with (folder / "seconds.jsonl").open("a") as file:
            file.write(json.dumps([step.name, took]) + "\n")


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
