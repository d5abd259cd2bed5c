"""From a configuration to the network, the LightningModule and the Lightning trainer."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from omegaconf import DictConfig
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loggers import Logger, TensorBoardLogger
from pytorch_lightning.profilers import AdvancedProfiler, Profiler, PyTorchProfiler, SimpleProfiler

from pancreas_mtl.build.settings import settings
from pancreas_mtl.configuration import plain
from pancreas_mtl.data.augment import Augment, AugmentConfig
from pancreas_mtl.errors import UsageError
from pancreas_mtl.inference.engines import cpu_has_bf16, cuda_has_bf16
from pancreas_mtl.interruption import Interrupted
from pancreas_mtl.losses.joint import LossConfig
from pancreas_mtl.models.network import MultitaskUNet, NetworkConfig
from pancreas_mtl.provenance import code_state
from pancreas_mtl.training.callbacks import CollapseDetector, History, LastValidation
from pancreas_mtl.training.checkpoints import checkpoint_step
from pancreas_mtl.training.last_checkpoint import (
    AtomicCheckpointIO,
    LastCheckpoint,
    MovableCheckpoint,
    ResumableEarlyStopping,
)
from pancreas_mtl.training.loggers import ResumableWandbLogger
from pancreas_mtl.training.module import MultitaskModule, OptimizerConfig
from pancreas_mtl.training.pictures import PictureConfig, Pictures
from pancreas_mtl.training.progress import ProgressBar, ProgressLog, quiet_lightning
from pancreas_mtl.training.warm_start import WarmStart, warm_start
from pancreas_mtl.types import Plan

log = logging.getLogger(__name__)

SCORE = "val/score"
PROFILERS = {"simple": SimpleProfiler, "advanced": AdvancedProfiler, "pytorch": PyTorchProfiler}


def network(config: DictConfig, plan: Plan) -> MultitaskUNet:
    """The network of a configuration."""
    return MultitaskUNet(plan, settings(NetworkConfig, config, "model"))


def module(config: DictConfig, plan: Plan) -> MultitaskModule:
    """The LightningModule, with its network, from trained weights where `model` names some."""
    built = network(config, plan)
    run = {"data": plain(config.data), "fold": config.fold}
    warm_start(built, settings(WarmStart, config, "model"), plan, run=run)
    return MultitaskModule(
        built,
        plan=plan,
        augment=Augment(
            settings(AugmentConfig, config, "augment"),
            patch_size=plan.patch_size,
            spacing_mm=plan.spacing_mm,
        ),
        loss=settings(LossConfig, config, "loss"),
        optimizer=settings(OptimizerConfig, config, "optimizer"),
        score_weights=plain(config.task.score),
        compile_network=config.compile,
    )


def trainer(config: DictConfig, run_dir: Path) -> pl.Trainer:
    """The Lightning trainer with the callbacks and loggers of a run."""
    own = callbacks(config, run_dir)
    built = lightning_trainer(config, run_dir, callbacks=own, logger=loggers(config, run_dir))
    log.info("training on %s in %s", built.strategy.root_device, built.precision)
    return built


def lightning_trainer(config: DictConfig, run_dir: Path, **extras: Any) -> pl.Trainer:
    """A Lightning trainer; `config.trainer` holds its arguments by their own names.

    Raises:
        UsageError: Lightning does not take one of them.
    """
    quiet_lightning()
    arguments = plain(config.trainer)
    if arguments["precision"] == "auto":
        arguments["precision"] = auto_precision(arguments["accelerator"])
    arguments.setdefault("enable_progress_bar", _shows_progress(config))
    if name := arguments.get("profiler"):
        arguments["profiler"] = profiler(name, run_dir)
    try:
        return pl.Trainer(
            **arguments,
            **extras,
            default_root_dir=run_dir,
            plugins=[AtomicCheckpointIO()],
            gradient_clip_val=config.optimizer.clip_norm,
            check_val_every_n_epoch=config.validate_every,
            reload_dataloaders_every_n_epochs=1,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
            enable_model_summary=False,
        )
    except (TypeError, ValueError, RuntimeError) as error:
        what = " ".join(str(error).split())
        raise UsageError(f"trainer: {what}; give what Lightning's Trainer takes") from error
    except pl.utilities.exceptions.MisconfigurationException as error:
        raise UsageError(f"trainer: {' '.join(str(error).split())}; try trainer=auto") from error


def num_processes(config: DictConfig) -> int:
    """How many processes train together, on all nodes.

    Raises:
        UsageError: Lightning does not take one of the trainer's arguments.
    """
    built = lightning_trainer(config, Path(config.output_dir), logger=False)
    return built.num_devices * built.num_nodes


def _shows_progress(config: DictConfig) -> bool:
    return bool(config.trainer.get("enable_progress_bar", sys.stderr.isatty()))


def auto_precision(accelerator: str) -> str:
    """The fastest precision that trains well on the device that will be used."""
    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        return "bf16-mixed" if cuda_has_bf16() else "16-mixed"
    return "bf16-mixed" if cpu_has_bf16() else "32-true"


def profiler(name: str, run_dir: Path) -> Profiler:
    """One of PROFILERS, which writes its table into the run's folder when training ends.

    Raises:
        UsageError: there is no such profiler.
    """
    if name not in PROFILERS:
        raise UsageError(f"trainer.profiler={name}: choose one of {', '.join(PROFILERS)}")
    return PROFILERS[name](dirpath=run_dir / "profile", filename=name)


def callbacks(config: DictConfig, run_dir: Path) -> list[Callback]:
    """Of validation, history, checkpoints, early stopping, collapse, pictures and progress."""
    return [
        LastValidation(),
        CollapseDetector(),
        History(run_dir / "metrics.csv"),
        MovableCheckpoint(
            dirpath=run_dir / "checkpoints",
            filename="best",
            monitor=SCORE,
            mode="max",
            enable_version_counter=False,
        ),
        LastCheckpoint(run_dir / "checkpoints" / "last.ckpt"),
        ResumableEarlyStopping(monitor=SCORE, mode="max", patience=config.patience),
        Pictures(run_dir, settings(PictureConfig, config, "pictures")),
        ProgressBar() if _shows_progress(config) else ProgressLog(),
    ]


def loggers(config: DictConfig, run_dir: Path) -> list[Logger] | bool:
    """The loggers that are asked for, False if none."""
    chosen: list[Logger] = []
    if config.logger.wandb:
        chosen.append(_wandb(config, run_dir))
    if config.logger.tensorboard:
        step = checkpoint_step(run_dir / "checkpoints" / "last.ckpt") if config.resume else None
        chosen.append(TensorBoardLogger(run_dir, name=None, version="tensorboard", purge_step=step))
    return chosen or False


def _wandb(config: DictConfig, run_dir: Path) -> ResumableWandbLogger:
    options = plain(config.logger.wandb)
    if options["mode"] not in ("online", "offline", "disabled"):
        raise UsageError(f"logger.wandb.mode={options['mode']}: choose online, offline or disabled")
    tags = [str(config.experiment), f"fold{config.fold}", f"seed{config.seed}", code_state().label]
    return ResumableWandbLogger(
        run_dir / "wandb.json",
        save_dir=run_dir,
        name="-".join(tags[:3]),
        group=str(config.experiment),
        tags=tags,
        config=plain(config),
        **options,
    )


@contextmanager
def logging_run(config: DictConfig) -> Iterator[None]:
    """End the job's wandb run after the block, so that the next job gets one of its own.

    After a failure the run is marked as failed, after an interruption as preempted.
    """
    if not config.logger.wandb:
        yield
        return
    import wandb  # which reports to its makers, so only where it is asked for

    exit_code = 1
    try:
        yield
        exit_code = 0
    except (Interrupted, KeyboardInterrupt):
        if wandb.run is not None:
            wandb.run.mark_preempting()
        raise
    finally:
        wandb.finish(exit_code=exit_code)
