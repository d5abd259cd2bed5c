"""The output folder of a training run: made once, never overwritten by accident, able to resume."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from pancreas_mtl.command import is_first_process
from pancreas_mtl.errors import UsageError
from pancreas_mtl.training.checkpoints import read_checkpoint

CONTENTS = (
    "config.yaml",
    "plan.json",
    "splits.json",
    "audit.json",
    "metrics.csv",
    "metrics.json",
    "report.html",
    "run.json",
    "git.diff",
    ".hydra",
    "wandb.json",
    "train.log",
    "bundle",
    "checkpoints",
    "oof",
    "validation",
    "evaluation",
    "pictures",
    "tensorboard",
)


def open_run(config: DictConfig, run_dir: Path) -> Path | None:
    """Make the folder ready, write `config.yaml` and start `train.log`.

    Returns:
        The checkpoint to go on from, None to start at the beginning.

    Raises:
        UsageError: the folder holds a run, and neither resume nor overwrite is asked for; its last
            checkpoint is damaged; the folder cannot be written.
    """
    checkpoint = None
    if (run_dir / "config.yaml").exists():
        checkpoint = _existing_run(config, run_dir)
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        if is_first_process():
            (run_dir / "config.yaml").write_text(OmegaConf.to_yaml(config, resolve=True))
            log_to(run_dir / "train.log")
    except OSError as error:
        raise UsageError(f"output_dir={run_dir}: {error.strerror}; give another one") from error
    return checkpoint


def _existing_run(config: DictConfig, run_dir: Path) -> Path | None:
    last = run_dir / "checkpoints" / "last.ckpt"
    if not is_first_process():
        return last if config.resume and last.exists() else None
    if config.resume:
        if not last.exists():
            return None
        read_checkpoint(last)
        return last
    if not config.overwrite:
        raise UsageError(
            f"output_dir={run_dir} holds a run: go on with it by resume=true, start anew by "
            "overwrite=true, or give another output_dir"
        )
    for name in CONTENTS:
        path = run_dir / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    return None


def log_to(path: Path) -> None:
    """Send all log messages to a file as well."""
    handler = logging.FileHandler(path)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.getLogger().addHandler(handler)
