import subprocess
import sys
import time
from contextlib import contextmanager

import pytest

from pancreas_mtl.benchmarks.side import PeakMemory, Side, memory_mb
from pancreas_mtl.errors import UsageError

PROGRAM = """
import sys
from pancreas_mtl.benchmarks.side import serve

tasks = {"double": lambda x: {"x": 2 * x}, "fail": lambda: 1 / 0}
serve(tasks, sys.stdin, sys.stdout)
"""


@pytest.fixture
def side(tmp_path):
    with Side("it", [sys.executable, "-c", PROGRAM], tmp_path / "log") as started:
        yield started


@contextmanager
def held(mb):
    """A process that holds so much until its input ends."""
    hold = f"import sys; held = b'x' * {mb * 10**6}; sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", hold], stdin=subprocess.PIPE) as process:
        yield process
        process.stdin.close()


def test_a_side_answers_and_is_timed(side):
    answer = side.ask("double", x=21)
    assert answer["x"] == 42
    assert answer["seconds"] > 0
    assert side.start_s > 0


def test_memory_is_the_peak_of_a_task(side):
    assert side.ask("double", x=1)["peak_mb"] > 1
    assert memory_mb(2**30) == 0  # no such process
    with held(mb=120) as process, PeakMemory(process.pid) as memory:
        soon = time.monotonic() + 60  # a busy machine is looked at seldom
        while memory.peak_mb < 120 and time.monotonic() < soon:
            time.sleep(0.05)
    assert 120 <= memory.peak_mb < 240


def test_failures_name_the_side_and_its_log(side, tmp_path):
    with pytest.raises(UsageError, match=r"it: ZeroDivisionError.*see .*log"):
        side.ask("fail")
    assert side.ask("double", x=1)["x"] == 2  # it goes on
    with (
        pytest.raises(UsageError, match="it: it has ended"),
        Side("it", [sys.executable, "-c", "pass"], tmp_path / "log"),
    ):
        pass
    with (
        pytest.raises(UsageError, match="absent: No such file"),
        Side("it", ["absent"], tmp_path / "log"),
    ):
        pass
