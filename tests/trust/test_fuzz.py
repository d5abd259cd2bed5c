"""Fuzzing in the suite: bytes near those of good files, and bytes of any kind."""

import signal
import time
import tracemalloc
from contextlib import contextmanager

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from trust.fuzz import SEEDS, TARGETS

pytestmark = pytest.mark.slow

MOST_BYTES = 2**26
MOST_S = 30.0  # for one input; reading one takes milliseconds
EXAMPLES = {"config": 40, "weights": 40, "dataset": 60, "journal": 60}


@st.composite
def mutated(draw, seeds):
    """A good file with a few bytes changed, pieces cut out, doubled or put in."""
    data = bytearray(draw(st.sampled_from(seeds)))
    for _ in range(draw(st.integers(0, 6))):
        at = draw(st.integers(0, max(0, len(data) - 1)))
        kind = draw(st.sampled_from(["byte", "cut", "double", "insert", "end"]))
        width = draw(st.integers(1, 12))
        if kind == "byte":
            data[at : at + 1] = bytes([draw(st.integers(0, 255))])
        elif kind == "cut":
            del data[at : at + width]
        elif kind == "double":
            data[at:at] = data[at : at + width] * draw(st.integers(1, 40))
        elif kind == "insert":
            data[at:at] = draw(st.sampled_from(PIECES))
        else:
            del data[at:]
    return bytes(data)


PIECES = [b"\0" * 8, b"\xff" * 8, b"1e999", b"NaN", b"-1", b"[", b"{", b'"', b"\n", b"../",
          b"null", b"999999999999", b"!!python/name:os.system", b"&a [*a]", b"\xc3\x28",
          b"=1+1"]  # fmt: skip


@contextmanager
def at_most(seconds):
    """Fail, as a defect would, where the block takes longer."""

    def hangs(signum, frame):
        raise AssertionError(f"an input takes more than {seconds} s")

    before = signal.signal(signal.SIGALRM, hangs)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("name", TARGETS)
def test_no_bytes_do_worse_than_one_line(name):
    strategy = st.one_of(mutated(SEEDS[name]), st.binary(max_size=600))

    @settings(
        max_examples=EXAMPLES.get(name, 120),
        deadline=None,
        suppress_health_check=list(HealthCheck),
        database=None,
        report_multiple_bugs=False,  # or the same hang, at two lines, would be a group
    )
    @given(strategy)
    def run(data):
        with at_most(MOST_S):
            TARGETS[name](data)

    tracemalloc.start()
    try:
        run()
        assert tracemalloc.get_traced_memory()[1] < MOST_BYTES
    finally:
        tracemalloc.stop()


def test_a_fuzzer_would_notice(monkeypatch):
    """A reader that fails in another way than by one line fails the test above."""
    monkeypatch.setattr("trust.fuzz.load_plan", lambda path: 1 / 0)
    with pytest.raises(ZeroDivisionError, match="division"):
        test_no_bytes_do_worse_than_one_line("plan")


def test_a_fuzzer_would_notice_a_hang(monkeypatch):
    monkeypatch.setitem(globals(), "MOST_S", 0.05)
    monkeypatch.setattr("trust.fuzz.load_plan", lambda path: time.sleep(1))
    with pytest.raises(AssertionError, match=r"an input takes more than 0.05 s"):
        test_no_bytes_do_worse_than_one_line("plan")
