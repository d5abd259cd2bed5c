"""From a configuration to the network, the LightningModule and the Lightning trainer."""

from __future__ import annotations

import sys
from pathlib import Path

import pytorch_lightning as pl
import torch
from omegaconf import DictConfig
from pytorch_lightning.callbacks import (
    Callback,
    EarlyStopping,
    ModelCheckpoint,
)
from pytorch_lightning.loggers import Logger, TensorBoardLogger, WandbLogger
from pytorch_lightning.profilers import AdvancedProfiler, Profiler, PyTorchProfiler, SimpleProfiler

from pancreas_mtl.build.settings import settings
from pancreas_mtl.configuration import plain
from pancreas_mtl.data.augment import Augment, AugmentConfig
from pancreas_mtl.errors import UsageError
from pancreas_mtl.inference.engines import cpu_has_bf16
from pancreas_mtl.losses.joint import LossConfig
from pancreas_mtl.models.network import MultitaskUNet, NetworkConfig
from pancreas_mtl.training.callbacks import CollapseDetector, History
from pancreas_mtl.training.module import MultitaskModule, OptimizerConfig
from pancreas_mtl.training.pictures import PictureConfig, Pictures
from pancreas_mtl.training.progress import ProgressBar, ProgressLog
from pancreas_mtl.training.warm_start import WarmStart, warm_start
from pancreas_mtl.types import Plan

SCORE = "val/score"
PROFILERS = {"simple": SimpleProfiler, "advanced": AdvancedProfiler, "pytorch": PyTorchProfiler}


def network(config: DictConfig, plan: Plan) -> MultitaskUNet:
    """The network of a configuration."""
    return MultitaskUNet(plan, settings(NetworkConfig, config, "model"))


def module(config: DictConfig, plan: Plan) -> MultitaskModule:
    """The LightningModule, with its network, from trained weights where `model` names some."""
    built = network(config, plan)
    warm_start(built, settings(WarmStart, config, "model"), plan)
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
    """The Lightning trainer; `config.trainer` holds its arguments by their own names."""
    arguments = plain(config.trainer)
    if arguments["precision"] == "auto":
        arguments["precision"] = auto_precision(arguments["accelerator"])
    arguments.setdefault("enable_progress_bar", sys.stderr.isatty())
    if name := arguments.get("profiler"):
        arguments["profiler"] = profiler(name, run_dir)
    try:
        return pl.Trainer(
            **arguments,
            default_root_dir=run_dir,
            callbacks=callbacks(config, run_dir, progress_bar=arguments["enable_progress_bar"]),
            logger=loggers(config, run_dir),
            gradient_clip_val=config.optimizer.clip_norm,
            check_val_every_n_epoch=config.validate_every,
            reload_dataloaders_every_n_epochs=1,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
            log_every_n_steps=10,
            enable_model_summary=False,
        )
    except (TypeError, ValueError, RuntimeError) as error:
        raise UsageError(f"trainer: {' '.join(str(error).split())}") from error
    except pl.utilities.exceptions.MisconfigurationException as error:
        raise UsageError(f"trainer: {' '.join(str(error).split())}") from error


def auto_precision(accelerator: str) -> str:
    """The fastest precision that trains well on the device that will be used."""
    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        return "bf16-mixed" if torch.cuda.is_bf16_supported() else "16-mixed"
    return "bf16-mixed" if cpu_has_bf16() else "32-true"


def profiler(name: str, run_dir: Path) -> Profiler:
    """One of PROFILERS, which writes its table into the run's folder when training ends.

    Raises:
        UsageError: there is no such profiler.
    """
    if name not in PROFILERS:
        raise UsageError(f"trainer.profiler={name}: choose one of {', '.join(PROFILERS)}")
    return PROFILERS[name](dirpath=run_dir / "profile", filename=name)


def callbacks(config: DictConfig, run_dir: Path, *, progress_bar: bool) -> list[Callback]:
    """History, checkpoints, early stopping, the watch for collapse, pictures, progress."""
    return [
        CollapseDetector(),
        History(run_dir / "metrics.csv"),
        ModelCheckpoint(
            dirpath=run_dir / "checkpoints",
            filename="best",
            monitor=SCORE,
            mode="max",
            save_last=True,
            enable_version_counter=False,
        ),
        EarlyStopping(monitor=SCORE, mode="max", patience=config.patience),
        Pictures(run_dir, settings(PictureConfig, config, "pictures")),
        ProgressBar() if progress_bar else ProgressLog(),
    ]


def loggers(config: DictConfig, run_dir: Path) -> list[Logger] | bool:
    """The loggers that are asked for, False if none."""
    chosen: list[Logger] = []
    if config.logger.wandb:
        chosen.append(_wandb(config, run_dir))
    if config.logger.tensorboard:
        chosen.append(TensorBoardLogger(run_dir, name=None, version="tensorboard"))
    return chosen or False


def _wandb(config: DictConfig, run_dir: Path) -> WandbLogger:
    options = plain(config.logger.wandb)
    if options["mode"] not in ("online", "offline", "disabled"):
        raise UsageError(f"logger.wandb.mode={options['mode']}: online, offline or disabled")
    return WandbLogger(
        save_dir=run_dir,
        name=f"{config.experiment}-fold{config.fold}-seed{config.seed}",
        group=str(config.experiment),
        tags=[str(config.experiment), f"fold{config.fold}", f"seed{config.seed}"],
        config=plain(config),
        **options,
    )


def finish_logging(config: DictConfig) -> None:
    """End the job's wandb run, so that the next job of a multirun gets one of its own."""
    if config.logger.wandb:
        import wandb  # which reports to its makers, so only where it is asked for

        wandb.finish()
