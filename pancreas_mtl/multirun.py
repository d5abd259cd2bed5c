"""The jobs of a multirun: how each one ended, wherever a launcher has run it.

Every job leaves an `outcome.json` in its folder below `hydra.sweep.dir`. So a job that fails is one
line of the final table and the others go on, whether they share this process or run on other nodes;
a job without an outcome was killed.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from pancreas_mtl.data.files import make_folder, write_json
from pancreas_mtl.errors import UsageError
from pancreas_mtl.ranks import is_first_process
from pancreas_mtl.types import Job

OUTCOME = "outcome.json"
CLAIMS = "claims"
NAMED_OTHERWISE = ("experiment", "fold", "seed")
NOT_IN_NAMES = re.compile(
    r"[+~]*(output_dir|resume|overwrite|workers|audit|print_config|trainer|logger"
    r"|trainer\.(accelerator|devices|num_nodes)|data\.root|(hydra|paths|logger)[./].*)="
)
LONGEST_NAME = 120


@dataclass(frozen=True)
class Multirun:
    """A multirun that has been started: its folder, and the overrides of every job."""

    sweep_dir: Path
    jobs: tuple[tuple[str, ...], ...]

    def has_begun(self) -> bool:
        """Whether any job has a folder; none has where a launcher refused the configuration."""
        return any((self.sweep_dir / str(number)).exists() for number in range(len(self.jobs)))

    def outcomes(self) -> list[Job]:
        """How the jobs ended, in their order."""
        return [
            _outcome(self.sweep_dir / str(number) / OUTCOME, number, overrides)
            for number, overrides in enumerate(self.jobs)
        ]


started: list[Multirun] = []
"""The multiruns of this process, filled by `NoteJobs`; the command empties it."""


class NoteJobs(Callback):
    """A Hydra callback that remembers which jobs a multirun has."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Work out the jobs as Hydra's own sweeper does."""
        overrides = OverridesParser.create().parse_overrides(list(config.hydra.overrides.task))
        (jobs,) = BasicSweeper.split_arguments(overrides, None)
        started.append(Multirun(Path(config.hydra.sweep.dir), tuple(map(tuple, jobs))))


def is_job() -> bool:
    """Whether this code runs inside a job of a multirun."""
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def claim(output_dir: Path) -> None:
    """Keep the jobs of this multirun out of each other's folders, or the last one's run would stay.

    The first process of a job claims for all of them. A multirun that is started again in the same
    folder, with resume=true or on another trainer, has the same jobs.

    Raises:
        UsageError: another job has it.
    """
    if not is_first_process():
        return
    folder, job = Path(HydraConfig.get().runtime.output_dir), HydraConfig.get().overrides.task
    path = folder.parent / CLAIMS / _digest(os.path.realpath(output_dir))
    draft = make_folder(path.parent) / f"{path.name}.{uuid.uuid4().hex[:8]}"
    mine = "\n".join(line for line in job if not NOT_IN_NAMES.match(line) or "data.root=" in line)
    try:
        draft.write_text(mine)
        os.link(draft, path)  # there at once and whole, for one of them alone
    except FileExistsError:
        if path.read_text() != mine:
            raise UsageError(
                f"output_dir={output_dir} is that of another job of this multirun as well: give "
                "each one of its own, as output_dir='DIR/${experiment}-${seed}'"
            ) from None
    finally:
        draft.unlink(missing_ok=True)


def write_outcome(config: DictConfig, exit_code: int, error: str | None) -> None:
    """Say how this job ended, all at once or not at all; for the first of its processes alone."""
    folder = Path(HydraConfig.get().runtime.output_dir)
    output_dir = OmegaConf.select(config, "output_dir")
    facts = {"output_dir": output_dir, "exit_code": exit_code, "error": error}
    write_json(folder / OUTCOME, facts)


def _outcome(path: Path, number: int, overrides: tuple[str, ...]) -> Job:
    try:
        facts = json.loads(path.read_text())
        output_dir = None if facts["output_dir"] is None else Path(facts["output_dir"])
        return Job(number, overrides, output_dir, facts["exit_code"], facts["error"])
    except (OSError, ValueError, KeyError):
        return Job(number, overrides, None, None, "killed, or never started")


def other_overrides(overrides: Sequence[str]) -> str:
    """The part of a run's name that tells it from others of its experiment, fold and seed.

    Empty, or the overrides that change what is trained, such as `+optimizer.lr-0.002`, of letters
    that Hydra and shells take without quotes; a digest where that is long, or leaves others out.
    """
    kept = [
        line
        for line in overrides
        if line.split("=")[0] not in NAMED_OTHERWISE and not NOT_IN_NAMES.match(line)
    ]
    if not kept:
        return ""
    said = "".join(f"+{line}" for line in sorted(kept))
    name = said.replace("=", "-").replace("/", "_")
    plain = re.sub(r"[^\w.+-]+", "_", name)
    digest = _digest(said)
    if len(name) > LONGEST_NAME:
        return f"+{digest}"
    return name if plain == name else f"{plain}-{digest}"


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=6).hexdigest()


OmegaConf.register_new_resolver("other_overrides", other_overrides, replace=True)
