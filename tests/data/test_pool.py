import logging
import os
import subprocess
import sys
import time

import pytest

from pancreas_mtl.data import pool
from pancreas_mtl.data.pool import default_workers, free_ram_bytes, map_in_processes, progress
from pancreas_mtl.errors import CaseError, UsageError

# Worker processes cannot import a test module, so their function is `eval` and the items are code.
DIE = "__import__('os')._exit(1)"
WHO = "__import__('os').getpid()"


def run(function, items, workers):
    return dict(map_in_processes(function, items, workers=workers, label="test"))


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_every_item_gets_its_result_or_its_exception(workers):
    outcomes = run(eval, ["1 + 1", "1 / 0", "1 + 2"], workers)
    assert (outcomes["1 + 1"], outcomes["1 + 2"]) == (2, 3)
    with pytest.raises(ZeroDivisionError, match="division by zero"):
        raise outcomes["1 / 0"]


def test_no_items_is_no_work():
    assert run(eval, [], 2) == {}


def test_one_worker_runs_in_this_process_and_two_do_not():
    assert run(eval, [WHO], 1)[WHO] == os.getpid()
    assert run(eval, [WHO, "0"], 2)[WHO] != os.getpid()


def test_a_killed_worker_costs_one_case_and_never_hangs(caplog):
    outcomes = run(eval, ["0", "1", "2", DIE, "4", "5"], 2)
    with pytest.raises(CaseError, match="killed, most likely because memory ran out"):
        raise outcomes.pop(DIE)
    assert outcomes == {str(i): i for i in (0, 1, 2, 4, 5)}
    assert "go on with 1 worker" in caplog.text


def test_workers_that_all_die_are_bad_usage():
    with pytest.raises(UsageError, match=r"die at once .* use workers=1"):
        run(eval, [DIE] * 9, 2)


@pytest.mark.parametrize("workers", [1, 2])
def test_memory_error_names_the_remedy(workers):
    code = "(_ for _ in ()).throw(MemoryError)"
    with pytest.raises(CaseError, match="lower the number of workers"):
        raise run(eval, [code, "0"], workers)[code]


def test_closing_early_cancels_the_rest():
    naps = ["__import__('time').sleep(0.2)"] * 300
    outcomes = map_in_processes(eval, naps, workers=2, label="test")
    next(outcomes)
    start_s = time.monotonic()
    outcomes.close()
    assert time.monotonic() - start_s < 10  # all of them would take 30 s


def test_default_workers_respects_cores_and_ram(monkeypatch):
    monkeypatch.setattr(pool, "cores", lambda: 8)
    monkeypatch.setattr(pool, "free_ram_bytes", lambda: 10_000)
    assert default_workers() == 8
    assert default_workers(bytes_per_item=2_000) == 4  # 80% of 10,000
    assert default_workers(bytes_per_item=1e9) == 1


def test_free_ram_is_positive_and_a_group_limit_counts(tmp_path):
    assert free_ram_bytes() > 0
    for name, text in {"max": "1000", "current": "700", "stat": "anon 5\ninactive_file 50"}.items():
        (tmp_path / f"memory.{name}").write_text(text)
    assert pool._free_in_group(tmp_path) == 350
    (tmp_path / "memory.max").write_text("max\n")
    assert pool._free_in_group(tmp_path) == float("inf")


def test_progress_without_a_terminal_logs_the_time_left(monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(pool, "LOG_EVERY_S", 0.0)
    with progress("reading", 3) as advance:
        advance()
    assert "reading: 1 of 3, about 0 s left" in caplog.text


def test_importing_the_pool_does_not_import_torch():
    code = "import sys, pancreas_mtl.data.pool; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
