"""The output folder of a training run: made once, never overwritten by accident, able to resume."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from pancreas_mtl.configuration import differences, plain
from pancreas_mtl.data.files import read_yaml, write_text
from pancreas_mtl.errors import UsageError
from pancreas_mtl.ranks import has_siblings, is_first_process
from pancreas_mtl.training.checkpoints import read_checkpoint

CONFIG = "config.yaml"
CONTENTS = (
    "checkpoints",
    "plan.json",
    "run.json",
    "splits.json",
    "audit.json",
    "metrics.csv",
    "metrics.json",
    "report.html",
    "git.diff",
    "resumed",
    ".hydra",
    "wandb.json",
    "train.log",
    "bundle",
    "oof",
    "validation",
    "evaluation",
    "pictures",
    "tensorboard",
    "wandb",
    "profile",
    CONFIG,
)
"""All that a run may leave, in the order in which it is removed.

What a resumed run would go on from goes first, `config.yaml`, by which a run is known, last. So
whenever overwriting is killed, the same command goes on with it.
"""

KEPT = ("fold", "seed", "overfit_cases", "plan", "model")
"""Keys and sections that a resumed run keeps: by them its cases were divided, its plan and network
made. The data are known by their folds; what else differs is noted in `run.json`.
"""

MADE_BY_ANY = ("plan.json", "splits.json", "audit.json")
"""What the first of several processes that needs it makes, whatever its rank."""


def open_run(config: DictConfig, run_dir: Path) -> Path | None:
    """Make the folder ready, write `config.yaml` and start `train.log`.

    Returns:
        The checkpoint to go on from, None to start at the beginning.

    Raises:
        UsageError: the folder holds a run, and neither resume nor overwrite is asked for, or
            another one than is to be resumed, or files that a run would replace; its last
            checkpoint is damaged; the folder cannot be written.
        CaseError: the disk is full.
    """
    checkpoint = None
    if (run_dir / CONFIG).exists():
        checkpoint = _existing_run(config, run_dir)
    elif is_first_process():
        _refuse_other_files(run_dir)
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        if is_first_process():
            write_text(run_dir / CONFIG, OmegaConf.to_yaml(config, resolve=True))
            log_to(run_dir / "train.log")
    except OSError as error:
        raise UsageError(f"output_dir={run_dir}: {error.strerror}; give another one") from error
    return checkpoint


def _existing_run(config: DictConfig, run_dir: Path) -> Path | None:
    last = run_dir / "checkpoints" / "last.ckpt"
    if not is_first_process():
        return last if config.resume and last.exists() else None
    if config.resume:
        _refuse_other_run(config, run_dir)
        if not last.exists():
            return None
        read_checkpoint(last)
        return last
    if not config.overwrite:
        raise UsageError(
            f"output_dir={run_dir} holds a run: go on with it by resume=true, start anew by "
            "overwrite=true, or give another output_dir"
        )
    if has_siblings():
        raise UsageError(
            f"overwrite=true: the processes beside this one may have read the old run already; "
            f"remove {run_dir} by hand"
        )
    for name in CONTENTS:
        path = run_dir / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    return None


def _refuse_other_run(config: DictConfig, run_dir: Path) -> None:
    """Cases that trained its weights would be held out, or a change would quietly do nothing."""
    for key, (old, new) in differences(read_yaml(run_dir / CONFIG), plain(config)).items():
        if key.split(".")[0] in KEPT:
            raise UsageError(
                f"output_dir={run_dir} holds a run with {key}={old}, not {new}: leave it as it "
                "was, start anew by overwrite=true, or give another output_dir"
            )


def _refuse_other_files(run_dir: Path) -> None:
    """Without a `config.yaml`, nothing tells that what lies here is a run's to replace."""
    others = MADE_BY_ANY if has_siblings() else ()
    for name in CONTENTS:
        if name not in others and (run_dir / name).exists():
            raise UsageError(
                f"output_dir={run_dir} holds {name}, but no {CONFIG} of a run: give another "
                f"output_dir, or remove {name}"
            )


def log_to(path: Path) -> None:
    """Send all log messages to a file as well."""
    handler = logging.FileHandler(path)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.getLogger().addHandler(handler)
