"""How a process stops when it is asked to: by SIGTERM, SIGUSR1 or SIGUSR2, as schedulers ask.

Outside training the signal raises `Interrupted` at once; what is finished is kept, as after Ctrl-C.
Training notes it (`note_signals`), writes its checkpoint after the running step, and then raises;
there Ctrl-C is such a signal too. A command ends with exit code 75, which means: the same command
goes on. (75 is EX_TEMPFAIL of sysexits.h: "try again later".)
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

EXIT_CODE = 75
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


class Interrupted(BaseException):
    """A signal asked the process to stop; not an `Exception`, so that nothing takes it for one."""

    def __init__(self, signum: int) -> None:
        super().__init__(f"interrupted by {signal.Signals(signum).name}")
        self.signum = signum


@contextmanager
def interruptible() -> Iterator[None]:
    """Raise `Interrupted` in the block when a signal comes; the handlers from before come back.

    Whoever handled the signal before, such as a launcher that asks its scheduler to run the job
    again, is called once the block has stopped.
    """

    def stop(signum: int, frame: FrameType | None) -> None:
        raise Interrupted(signum)

    with _handled_by(stop, SIGNALS) as before:
        try:
            yield
        except Interrupted as interruption:
            earlier = before.get(interruption.signum)
            if callable(earlier):
                earlier(interruption.signum, None)
            raise


@contextmanager
def note_signals() -> Iterator[list[int]]:
    """Append the numbers of the signals that come to the list that the block is given.

    Ctrl-C is among them; a second one raises `Interrupted` at once.
    """
    noted: list[int] = []

    def note(signum: int, frame: FrameType | None) -> None:
        if signum == signal.SIGINT and signum in noted:
            raise Interrupted(signum)
        noted.append(signum)

    with _handled_by(note, (*SIGNALS, signal.SIGINT)):
        yield noted


@contextmanager
def _handled_by(
    handler: Callable[[int, FrameType | None], None], signals: Sequence[signal.Signals]
) -> Iterator[dict[int, Any]]:
    """Python hears signals in the main thread alone; elsewhere this does nothing.

    A job in a shell's background ignores Ctrl-C, which is meant for another; so it stays.
    """
    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        ignores = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
        heard = [one for one in signals if one != signal.SIGINT or not ignores]
        before = {signum: signal.signal(signum, handler) for signum in heard}
    try:
        yield before
    finally:
        for signum, earlier in before.items():
            signal.signal(signum, signal.SIG_DFL if earlier is None else earlier)
