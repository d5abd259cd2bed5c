import sys

import pytest

from pancreas_mtl.benchmarks.side import Side, memory_mb
from pancreas_mtl.errors import UsageError

PROGRAM = """
import sys
from pancreas_mtl.benchmarks.side import serve

def hold(mb):
    held = bytearray(mb * 1000000)
    for i in range(0, len(held), 4096):
        held[i] = 1
    import time
    time.sleep(0.5)
    return {"held": len(held)}

tasks = {"double": lambda x: {"x": 2 * x}, "hold": hold, "fail": lambda: 1 / 0}
serve(tasks, sys.stdin, sys.stdout)
"""


@pytest.fixture
def side(tmp_path):
    with Side("it", [sys.executable, "-c", PROGRAM], tmp_path / "log") as started:
        yield started


def test_a_side_answers_and_is_timed(side):
    answer = side.ask("double", x=21)
    assert answer["x"] == 42
    assert answer["seconds"] > 0
    assert side.start_s > 0


def test_memory_is_the_peak_of_a_task(side):
    before = side.ask("double", x=1)["peak_mb"]
    during = side.ask("hold", mb=120)["peak_mb"]
    assert during - before > 100
    assert memory_mb(2**30) == 0  # no such process


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
