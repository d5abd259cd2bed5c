"""The project's commands, run in this process as their users run them."""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import sys
from typing import NamedTuple

import pytest
from hydra.core.global_hydra import GlobalHydra


class Finished(NamedTuple):
    """What a command left in the terminal, as far as this matters to its caller."""

    code: int
    stdout: str
    stderr: str

    @property
    def last_line(self) -> str:
        return self.stderr.strip().splitlines()[-1]


def call(module: str, *arguments: object) -> Finished:
    """Run a command: `call("train", "fold=9")`."""
    root, out, err = logging.getLogger(), io.StringIO(), io.StringIO()
    handlers, level = root.handlers[:], root.level
    program = importlib.import_module(module)
    GlobalHydra.instance().clear()
    with pytest.MonkeyPatch.context() as patch, contextlib.ExitStack() as stack:
        patch.setattr(sys, "argv", [program.__file__, *map(str, arguments)])
        stack.enter_context(contextlib.redirect_stdout(out))
        stack.enter_context(contextlib.redirect_stderr(err))
        try:
            program.main()
            code = 0
        except SystemExit as stop:
            code = int(stop.code or 0)
        finally:
            root.handlers[:] = handlers
            root.setLevel(level)
    return Finished(code, out.getvalue(), err.getvalue())
