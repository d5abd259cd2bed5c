"""How every command starts and ends: Hydra in front, one readable line and an exit code behind.

Exit codes: 0 all done; 1 some cases failed, or a defect; 2 bad usage or configuration; 75 a signal
interrupted it, and the same command goes on. A defect's traceback goes to the command's log file,
its one line to the terminal.
"""

from __future__ import annotations

import logging
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Sequence
from functools import wraps
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pancreas_mtl import interruption, multirun
from pancreas_mtl.configuration import CONF_DIR, did_you_mean, known_keys, unknown_key
from pancreas_mtl.errors import CaseError, UsageError
from pancreas_mtl.help import help_text
from pancreas_mtl.ranks import has_siblings, is_first_process
from pancreas_mtl.types import Job

EXIT_USAGE = 2
ONE_PATH = ("output_dir", "input", "references", "root", "model_folder", "data.root")
SEVERAL_PATHS = ("model", "predictions", "runs")
log = logging.getLogger("pancreas_mtl")


def command(
    config_name: str, *, after_jobs: Callable[[Sequence[Job], Path], str] | None = None
) -> Callable[[Callable[[DictConfig], None]], Callable[[], None]]:
    """Make a Hydra app of `main(config)`; `config_name` is its primary file in `conf/`.

    `main` returns when all went well and raises `UsageError` (exit 2) or `CaseError` (exit 1).

    Args:
        config_name: the command's configuration.
        after_jobs: what to say at the end of a multirun, from its jobs and its folder.
    """

    def decorate(main: Callable[[DictConfig], None]) -> Callable[[], None]:
        @wraps(main)
        def run() -> None:
            if {"--help", "-h"}.intersection(sys.argv[1:]):
                print(help_text(config_name, main.__doc__ or "", sys.argv[1:]))
                return
            os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then hands us its exceptions
            errors: list[Exception] = []
            try:
                _refuse_dashes(sys.argv[1:], config_name)
                _hydra_app(main, config_name, errors)()
            except (HydraException, OmegaConfBaseException, CaseError, UsageError) as error:
                errors.append(error)
            except Exception as error:  # of a launcher
                errors.append(_defect(error))
            except KeyboardInterrupt:
                _say("interrupted")
                sys.exit(130)
            except interruption.Interrupted as stop:
                several = has_siblings() or "LOCAL_RANK" in os.environ  # Lightning's own children
                together = config_name == "train" and several
                _say(f"{stop}; the same command{' with resume=true' if together else ''} goes on")
                sys.exit(0 if together and not is_first_process() else interruption.EXIT_CODE)
            finally:
                errors += _end_of_jobs(after_jobs)
            for problem in errors:
                _say(one_line(problem, config_name))
            if errors:
                sys.exit(_exit_code(errors))

        return run

    return decorate


def _hydra_app(
    main: Callable[[DictConfig], None], config_name: str, errors: list[Exception]
) -> Callable[[], Any]:
    """The app; what goes wrong is added to `errors`, or told by a job, and the next job goes on."""

    @hydra.main(version_base="1.3", config_path=str(CONF_DIR), config_name=config_name)
    def app(config: DictConfig) -> None:
        found: list[Exception] = []
        try:
            if missing := sorted(OmegaConf.missing_keys(config)):
                raise UsageError(f"{missing[0]} is not set: give {missing[0]}=VALUE")
            if key := unknown_key(config, config_name, _added_keys()):
                hint = _suggestion(key, known_keys(config_name))
                raise UsageError(f"{key}: no such key{hint}")
            _refuse_odd_paths(config)
            with interruption.interruptible():
                main(config)
        except (UsageError, CaseError, OmegaConfBaseException) as error:
            found.append(error)
        except Exception as error:
            found.append(_defect(error))
        if not multirun.is_job():
            errors.extend(found)
        elif is_first_process():
            line = one_line(found[0], config_name) if found else None
            multirun.write_outcome(config, _exit_code(found), line)

    return app


def _end_of_jobs(after_jobs: Callable[[Sequence[Job], Path], str] | None) -> list[Exception]:
    """Sum up the multirun, if there was one; its failed jobs as errors."""
    errors: list[Exception] = []
    while multirun.started:
        ended = multirun.started.pop(0)
        if not ended.has_begun():
            continue
        jobs, folder = ended.outcomes(), ended.sweep_dir
        if after_jobs is not None:
            print(after_jobs(jobs, folder))
        for job in jobs:
            kind = UsageError if job.exit_code == EXIT_USAGE else CaseError
            if job.exit_code != 0:
                errors.append(kind(f"job {job.number}: {job.error}"))
    return errors


def _exit_code(errors: Sequence[Exception]) -> int:
    if not errors:
        return 0
    return 1 if any(isinstance(error, CaseError) for error in errors) else EXIT_USAGE


def _defect(error: Exception) -> CaseError:
    where = _log_traceback()
    return CaseError(f"defect: {type(error).__name__}: {error} (traceback {where})")


def _log_traceback() -> str:
    """Put the traceback into the log file, or on the terminal where there is none; say where."""
    files = [h for h in logging.getLogger().handlers if isinstance(h, logging.FileHandler)]
    if not files:
        traceback.print_exc()
        return "above"
    record = log.makeRecord(log.name, logging.ERROR, __file__, 0, "defect", (), sys.exc_info())
    files[0].handle(record)
    return f"in {files[0].baseFilename}"


def one_line(error: Exception, config_name: str) -> str:
    """The message of an error in one line, with a suggestion where a name was mistyped."""
    text = str(error)
    unknown = re.search(r"Could not override '([^']+)'", text)
    if unknown:
        return f"{unknown[1]}: no such key{_suggestion(unknown[1], known_keys(config_name))}"
    choice = re.search(
        r"Could not find '([^']+)'\s+Available options in '[^']+':\s+(.*)", text, re.S
    )
    if choice:
        group, _, name = choice[1].rpartition("/")
        options = choice[2].split("Config search path")[0].split()
        hint = did_you_mean(name, options)
        return f"{group}={name}: no such choice{hint}; choose one of: {', '.join(options)}"
    return " ".join(text.split())


def _refuse_dashes(arguments: Sequence[str], config_name: str) -> None:
    """End at `--KEY VALUE`, the habit of other programs, which Hydra would misread."""
    for argument in arguments:
        key, has_value, value = argument.removeprefix("--").partition("=")
        if argument.startswith("--") and key.replace("-", "_") in known_keys(config_name):
            given = f"{key.replace('-', '_')}={value if has_value else 'VALUE'}"
            raise UsageError(f"{argument}: keys are given as {given}, without dashes")


def _refuse_odd_paths(config: DictConfig) -> None:
    """End where Hydra has read a path as a number, or found several in place of one."""
    for key in (*ONE_PATH, *SEVERAL_PATHS):
        value = OmegaConf.select(config, key)
        several = OmegaConf.is_list(value)
        if several and key in ONE_PATH:
            raise UsageError(f"{key}={value}: give one path")
        for one in value if several else [value]:
            if isinstance(one, (int, float)):
                raise UsageError(f"{key}={one}: this is read as a number; write {key}=./{one}")


def _suggestion(key: str, known: Iterable[str]) -> str:
    return did_you_mean(key, known) or "; --help lists the keys"


def is_said(key: str) -> bool:
    """Whether the command line itself sets a key, and not one of the choices on it."""
    said = HydraConfig.get().overrides.task
    return any(line.lstrip("+").split("=")[0] == key for line in said)


def _added_keys() -> list[str]:
    """The keys that the command line adds on purpose, by `+KEY=VALUE`."""
    said = HydraConfig.get().overrides.task
    return [line.lstrip("+").split("=")[0] for line in said if line.startswith("+")]


def _say(message: str) -> None:
    """Print one line; what a terminal would obey, such as in a file's name, is shown escaped."""
    shown = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in message)
    print(f"{Path(sys.argv[0]).stem}: {shown}", file=sys.stderr)
