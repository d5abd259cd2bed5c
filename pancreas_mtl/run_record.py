"""`run.json` of a training: what it was made from and how it ended; beside it what repeats it.

`git.diff` holds the changes since the revision, `.hydra/config.yaml` the configuration in the form
that `python train.py --config-path RUN/.hydra --config-name config output_dir=DIR` repeats.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from pancreas_mtl.command import is_first_process
from pancreas_mtl.data.files import write_json
from pancreas_mtl.interruption import Interrupted
from pancreas_mtl.multirun import is_job
from pancreas_mtl.provenance import code_state, machine, package_versions, peak_memory_gb

SCHEMA = 1
BOOKKEEPING = ("output_dir", "resume", "overwrite", "workers", "print_config", "logger", "hydra")
"""What may differ between two runs that are the same."""
REPEAT = """\
# Repeats this run: python train.py --config-path {folder} --config-name config output_dir=DIR
defaults:
  - _self_
  - override hydra/job_logging: stdout
  - override hydra/hydra_logging: none

hydra:
  run: {{dir: .}}
  output_subdir: null

"""


def is_finished(config: DictConfig, run_dir: Path) -> bool:
    """Whether the folder holds this very run, finished."""
    record = read_record(run_dir)
    return record.get("status") == "finished" and record.get("config") == config_digest(config)


def goes_on(config: DictConfig, run_dir: Path) -> bool:
    """Whether this run was interrupted, and is started again, by its scheduler or its user.

    A finished job of a multirun counts as well: when the multirun is started again it has nothing
    to do, unless overwrite=true.
    Several processes cannot agree on what the folder said when the first of them began; they go on
    where SLURM says that it has queued the job again, or with resume=true.
    """
    if int(os.environ.get("SLURM_RESTART_COUNT", "0")) > 0:
        return True
    if is_job() and is_finished(config, run_dir):
        return not config.overwrite
    alone = str(config.trainer.devices) == "1" and "WORLD_SIZE" not in os.environ
    record = read_record(run_dir)
    same = record.get("config") == config_digest(config)
    return alone and same and record.get("status") == "interrupted"


def read_record(run_dir: Path) -> dict[str, Any]:
    """What `run.json` says; nothing where there is none."""
    try:
        return dict(json.loads((run_dir / "run.json").read_text()))
    except (OSError, ValueError):
        return {}


def note(run_dir: Path, **facts: Any) -> None:
    """Add facts to `run.json`, all at once or not at all; the first process alone does it."""
    if not is_first_process():
        return
    write_json(run_dir / "run.json", {**read_record(run_dir), **facts})


@contextmanager
def recorded(config: DictConfig, run_dir: Path) -> Iterator[None]:
    """Write how the run was made before the block, and how it ended after it."""
    if is_first_process():
        _note_origin(config, run_dir)
    try:
        yield
    except Interrupted as error:
        note(run_dir, status="interrupted", error=str(error), ended=_now())
        raise
    except BaseException as error:
        what = " ".join(f"{type(error).__name__}: {error}".split())
        note(run_dir, status="failed", error=what, ended=_now())
        raise
    peak = peak_memory_gb()
    note(run_dir, status="finished", error=None, ended=_now(), peak_memory_gb=peak)


def data_fingerprint(entries: Iterable[tuple[str, str]]) -> str:
    """A name for the very contents of a dataset, from its cases' names and content keys."""
    text = json.dumps(sorted(entries))
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def config_digest(config: DictConfig) -> str:
    """A name for what decides a run's result."""
    values = OmegaConf.to_container(config, resolve=True)
    assert isinstance(values, dict)
    kept = {key: value for key, value in values.items() if key not in BOOKKEEPING}
    text = json.dumps(kept, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _note_origin(config: DictConfig, run_dir: Path) -> None:
    code = code_state()
    before = read_record(run_dir) if config.resume else {}
    (run_dir / "run.json").unlink(missing_ok=True)
    (run_dir / "git.diff").write_text(code.diff)
    _write_repeatable(config, run_dir / ".hydra")
    note(
        run_dir,
        schema=SCHEMA,
        status="running",
        error=None,
        command=sys.argv,
        experiment=str(config.experiment),
        fold=config.fold,
        seed=config.seed,
        config=config_digest(config),
        git={"revision": code.revision, "label": code.label, "untracked": code.untracked},
        machine=machine(),
        packages=package_versions(),
        started=before.get("started", _now()),
        resumed=[*before.get("resumed", []), *([_now()] if before else [])],
        ended=None,
    )


def _write_repeatable(config: DictConfig, folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    again = OmegaConf.create(OmegaConf.to_container(config, resolve=True))
    again.resume = again.overwrite = False
    text = REPEAT.format(folder=folder.resolve()) + OmegaConf.to_yaml(again)
    (folder / "config.yaml").write_text(text)


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")
