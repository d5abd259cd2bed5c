"""A program in a process of its own, which does tasks when asked and answers in JSON lines."""

from __future__ import annotations

import json
import os
import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import psutil

from pancreas_mtl.errors import UsageError

SAMPLE_EVERY_S = 0.2
SAMPLING_SHARE = 0.01  # of the time at most, as looking at many processes takes some


class Side:
    """One of the two that are compared; use it as a context manager.

    Args:
        name: for tables and errors.
        command: starts a program that `serve`s.
        log: where what it prints goes.
        device: in its environment, as BENCHMARK_DEVICE.
        environment: what else there is to be in it.
    """

    def __init__(
        self,
        name: str,
        command: list[str],
        log: Path,
        *,
        device: str = "cpu",
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.name = name
        self._environment = {**os.environ, "BENCHMARK_DEVICE": device, **(environment or {})}
        self.log = log
        self._command = command

    def __enter__(self) -> Side:
        """Start the program; `start_s` is what its imports took."""
        start_s = time.perf_counter()
        try:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self.log.open("w"),
                text=True,
                env=self._environment,
            )
        except OSError as error:
            raise UsageError(f"{self._command[0]}: {error.strerror}; see {self.name}") from None
        self._answer()
        self.start_s = time.perf_counter() - start_s
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End the program."""
        _given(self._process.stdin).close()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()

    def ask(self, task: str, **arguments: Any) -> dict[str, Any]:
        """What it answers to a task; with `seconds`, and `peak_mb` of it and its children."""
        with PeakMemory(self._process.pid) as memory:
            start_s = time.perf_counter()
            stdin = _given(self._process.stdin)
            stdin.write(json.dumps({"task": task, **arguments}) + "\n")
            stdin.flush()
            answer = self._answer()
            seconds = time.perf_counter() - start_s
        return {"seconds": seconds, "peak_mb": memory.peak_mb, **answer}

    def _answer(self) -> dict[str, Any]:
        line = _given(self._process.stdout).readline()
        answer: dict[str, Any] = json.loads(line) if line else {"error": "it has ended"}
        if "error" in answer:
            raise UsageError(f"{self.name}: {answer['error']}; see {self.log}")
        return answer


class PeakMemory:
    """The largest memory of a process and its children while this context lasts.

    Memory is the proportional set size: what several processes share is counted once.
    """

    def __init__(self, pid: int) -> None:
        self.peak_mb = 0.0
        self._pid = pid
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> PeakMemory:
        """Start to watch."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop to watch."""
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while True:
            start_s = time.perf_counter()
            self.peak_mb = max(self.peak_mb, memory_mb(self._pid))
            took_s = time.perf_counter() - start_s
            if self._done.wait(max(SAMPLE_EVERY_S, took_s / SAMPLING_SHARE)):
                return


def memory_mb(pid: int) -> float:
    """Proportional set size of a process and all its children, in MB; 0 when it is gone."""
    total = 0.0
    try:
        process = psutil.Process(pid)
        for one in (process, *process.children(recursive=True)):
            try:
                total += one.memory_full_info().pss / 1e6
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
    except psutil.NoSuchProcess:
        pass
    return total


def serve(
    tasks: Mapping[str, Callable[..., dict[str, Any]]], source: IO[str], out: IO[str]
) -> None:
    """Say that all is imported, then do tasks as they come, until `source` ends."""
    _write(out, {"ready": True})
    for line in source:
        request = json.loads(line)
        try:
            answer = tasks[request.pop("task")](**request)
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        _write(out, answer)


def _write(out: IO[str], answer: Mapping[str, Any]) -> None:
    out.write(json.dumps(answer) + "\n")
    out.flush()


def _given(stream: IO[str] | None) -> IO[str]:
    assert stream is not None
    return stream
