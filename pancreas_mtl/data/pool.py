"""Work on many files at once, in processes that can neither hang nor take the run down.

A worker killed by the system, as happens when memory runs out, breaks a whole process pool. Here
the unfinished items then go on with half the workers, down to one; an item that kills even a
single worker becomes a `CaseError`, and the others are done. Workers that do not answer any more
are killed by a watchdog, and their items treated alike.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import TypeVar

import psutil
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from pancreas_mtl.errors import CaseError, UsageError

T = TypeVar("T")
R = TypeVar("R")

log = logging.getLogger(__name__)

STALL_S = 600.0  # silence after which a warning says that nothing has finished
HANG_S = 3600.0  # silence after which the watchdog kills the workers
LOG_EVERY_S = 15.0  # where there is no terminal for a progress bar
RAM_SHARE = 0.8  # of the free memory, so that the page cache and other programs keep some
ONE_THREAD = {f"{library}_NUM_THREADS": "1" for library in ("OMP", "OPENBLAS", "MKL")}
START_ATTEMPTS = 3  # workers killed before any item is done: then the cause is not an item


def map_in_processes(
    function: Callable[[T], R], items: Sequence[T], *, workers: int, label: str
) -> Iterator[tuple[T, R | Exception]]:
    """Yield `(item, result or exception)` in the order of completion.

    Args:
        function: picklable (defined at the top of a module); its result should be small, for it
            travels between processes: large arrays go through files.
        items: picklable; may be empty.
        workers: processes, started afresh ("spawn"); up to 1 runs in this process.
        label: what is being done, for the progress bar or the log.

    Raises:
        UsageError: no worker process can run at all.
    """
    workers = min(workers, len(items))
    run = _in_pools(function, items, workers) if workers > 1 else _in_this_process(function, items)
    with progress(label, len(items)) as advance:
        for index, outcome in run:
            advance()
            yield items[index], _explained(outcome)


def default_workers(bytes_per_item: float = 0.0) -> int:
    """Processes that fit the machine: one a core, less where free RAM is short; at least 1."""
    fitting = free_ram_bytes() * RAM_SHARE / max(bytes_per_item, 1.0)
    return max(1, int(min(cores(), fitting)))


def cores() -> int:
    """Processor cores that this process may use."""
    if hasattr(os, "process_cpu_count"):  # Python >= 3.13
        return os.process_cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def free_ram_bytes() -> float:
    """Memory that can still be taken: of the machine, or of the container or job if it has less."""
    free = float(psutil.virtual_memory().available)
    try:
        group = Path("/proc/self/cgroup").read_text().partition("0::/")[2].splitlines()[0:1]
        folder = Path("/sys/fs/cgroup", *group)
        while folder.name:
            free = min(free, _free_in_group(folder))
            folder = folder.parent
    except (OSError, ValueError):
        pass  # no control groups here, or all of them looked at
    return free


def _free_in_group(folder: Path) -> float:
    limit = (folder / "memory.max").read_text().strip()
    if limit == "max":
        return float("inf")
    used = int((folder / "memory.current").read_text())
    stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    return max(0, int(limit) - used + int(stat["inactive_file"]))  # cached files give way


@contextmanager
def progress(label: str, total: int) -> Iterator[Callable[[], None]]:
    """Show progress with a time estimate: a bar on a terminal, else a log line now and then.

    The value is a function to call after each of the `total` items.
    """
    console = Console(stderr=True)
    if console.is_terminal:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console) as bar:
            task = bar.add_task(label, total=total)
            yield lambda: bar.advance(task)
    else:
        yield _logged_progress(label, total)


def _logged_progress(label: str, total: int) -> Callable[[], None]:
    start_s = last_s = time.monotonic()
    done = 0

    def advance() -> None:
        nonlocal last_s, done
        done += 1
        now_s = time.monotonic()
        if now_s - last_s >= LOG_EVERY_S and done < total:
            last_s = now_s
            left_s = (now_s - start_s) / done * (total - done)
            log.info("%s: %d of %d, about %.0f s left", label, done, total, left_s)

    return advance


def _in_this_process(
    function: Callable[[T], R], items: Sequence[T]
) -> Iterator[tuple[int, R | Exception]]:
    for index, item in enumerate(items):
        try:
            yield index, function(item)
        except Exception as error:
            yield index, error


def _in_pools(
    function: Callable[[T], R], items: Sequence[T], workers: int
) -> Iterator[tuple[int, R | Exception]]:
    todo = list(range(len(items)))
    killed = 0
    while todo := (yield from _in_pool(function, items, todo, workers)):
        if workers > 1:
            workers //= 2
            log.warning(
                "a worker process was killed, most likely because memory ran out; "
                "%d unfinished items go on with %d worker(s)",
                len(todo),
                workers,
            )
            continue
        yield todo.pop(0), BrokenProcessPool()  # a single worker takes them in order: it did it
        killed += 1
        if killed == START_ATTEMPTS == len(items) - len(todo):
            raise UsageError(
                f"worker processes die at once ({killed} of {killed} attempts): use workers=1, "
                "which needs no other process, or free memory"
            )


def _in_pool(
    function: Callable[[T], R], items: Sequence[T], todo: list[int], workers: int
) -> Generator[tuple[int, R | Exception], None, list[int]]:
    """Yield what one pool gets done of the items in `todo`; return the rest if it breaks."""
    pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"))
    killed: list[int] = []
    pending: dict[Future[R], int] = {}
    try:
        with _environment(ONE_THREAD):  # submitting starts the workers, which inherit it
            for index in todo:
                try:
                    pending[pool.submit(function, items[index])] = index
                except BrokenProcessPool:
                    killed.append(index)
        silent_s = 0.0
        while pending:
            done, _ = wait(pending, timeout=STALL_S, return_when=FIRST_COMPLETED)
            silent_s = 0.0 if done else silent_s + STALL_S
            if not done:
                _watch(pool, silent_s)
            for future in done:
                index, error = pending.pop(future), future.exception()
                if isinstance(error, BrokenProcessPool):
                    killed.append(index)
                elif isinstance(error, Exception):
                    yield index, error
                else:
                    yield index, future.result()
    finally:
        pool.shutdown(cancel_futures=True)
    return sorted(killed)


def _watch(pool: ProcessPoolExecutor, silent_s: float) -> None:
    """Warn that nothing finishes, or end it: killed workers break the pool, which is handled."""
    if silent_s < HANG_S:
        log.warning("no item has finished for %.0f s; killed after %.0f s", silent_s, HANG_S)
        return
    log.warning("no item has finished for %.0f s: the workers are killed", silent_s)
    for process in list(pool._processes.values()):  # public as kill_workers() from Python 3.14
        process.kill()


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    """Set environment variables for a while; numpy's libraries read them when they are loaded."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _explained(outcome: R | Exception) -> R | Exception:
    """Replace the two forms that a lack of memory takes by an error with a remedy."""
    if isinstance(outcome, BrokenProcessPool):
        return CaseError(
            "its worker process was killed, most likely because memory ran out, or by the "
            f"watchdog after {HANG_S:.0f} s without an answer: free memory, or leave this case out"
        )
    if isinstance(outcome, MemoryError):
        return CaseError("memory ran out: lower the number of workers, or free memory")
    return outcome
