"""`run.json` of a training: what it was made from and how it ended; beside it what repeats it.

`git.diff` holds the changes since the revision, `.hydra/config.yaml` the configuration in the form
that `python train.py --config-path RUN/.hydra --config-name config output_dir=DIR` repeats, that of
the last start. Code, packages and machine are those of the first start; what differs when the run
is resumed stands in `resumed`, settings that had other values among it, its changes of the code in
`resumed/1.diff` and so on.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from pancreas_mtl.configuration import differences, plain
from pancreas_mtl.data.files import make_folder, read_yaml, write_json, write_text
from pancreas_mtl.interruption import Interrupted
from pancreas_mtl.multirun import is_job
from pancreas_mtl.provenance import code_state, machine, package_versions, peak_memory_gb
from pancreas_mtl.ranks import has_siblings, is_first_process
from pancreas_mtl.training.faults import faults_explained

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


def goes_on(config: DictConfig, run_dir: Path, *, num_processes: int) -> bool:
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
    alone = num_processes == 1 and not has_siblings()
    record = read_record(run_dir)
    if config.overwrite and not record.get("overwrite"):
        return False  # the start that was interrupted did not ask for it
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
    """Write how the run was made before the block, and how it ended after it.

    Raises:
        TrainingError: for a fault of the machine in the block, see `training/faults.py`.
    """
    if is_first_process():
        _note_origin(config, run_dir)
    try:
        with faults_explained():
            yield
    except (Interrupted, KeyboardInterrupt) as error:
        note(run_dir, status="interrupted", error=str(error) or "interrupted", ended=_now())
        raise
    except BaseException as error:
        what = " ".join(f"{type(error).__name__}: {error}".split())
        note(run_dir, status="failed", error=what, ended=_now())
        raise
    peak = peak_memory_gb()
    note(run_dir, status="finished", error=None, ended=_now(), peak_memory_gb=peak)


def config_digest(config: DictConfig) -> str:
    """A name for what decides a run's result."""
    kept = {key: value for key, value in plain(config).items() if key not in BOOKKEEPING}
    text = json.dumps(kept, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _note_origin(config: DictConfig, run_dir: Path) -> None:
    """Begin the record, or add to it what differs from the first start."""
    code = code_state()
    first = read_record(run_dir) if config.resume else {}
    origin = {
        "command": sys.argv,
        "git": {"revision": code.revision, "label": code.label, "untracked": code.untracked},
        "machine": machine(),
        "packages": package_versions(),
    }
    facts = {
        "schema": SCHEMA,
        "status": "running",
        "error": None,
        **{key: first.get(key, value) for key, value in origin.items()},
        "experiment": str(config.experiment),
        "overwrite": bool(config.overwrite),
        "fold": config.fold,
        "seed": config.seed,
        "config": config_digest(config),
        "started": first.get("started", _now()),
        "resumed": first.get("resumed", []),
        "ended": None,
    }
    if first:
        changed = {key: value for key, value in origin.items() if value != facts[key]}
        if settings := _changed_settings(config, run_dir):
            changed["settings"] = settings
        diff = f"resumed/{len(facts['resumed']) + 1}.diff"
        make_folder(run_dir / "resumed")
        write_text(run_dir / diff, code.diff)
        facts["resumed"] = [*facts["resumed"], {"at": _now(), "diff": diff, **changed}]
    else:
        write_text(run_dir / "git.diff", code.diff)
    _write_repeatable(config, run_dir / ".hydra")
    write_json(run_dir / "run.json", facts)


def _changed_settings(config: DictConfig, run_dir: Path) -> dict[str, list[Any]]:
    """What decides the result and was otherwise at the last start: before and now, by key."""
    repeatable = run_dir / ".hydra" / "config.yaml"
    found = differences(read_yaml(repeatable), plain(config)) if repeatable.exists() else {}
    return {key: both for key, both in found.items() if key.split(".")[0] not in BOOKKEEPING}


def _write_repeatable(config: DictConfig, folder: Path) -> None:
    make_folder(folder)
    again = OmegaConf.create(plain(config))
    again.resume = again.overwrite = False
    text = REPEAT.format(folder=folder.resolve()) + OmegaConf.to_yaml(again)
    write_text(folder / "config.yaml", text)


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")
