"""What is wrong with a configuration, found before any work is done."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.plugins.environments import TorchElasticEnvironment

from pancreas_mtl.build.settings import check_type, settings
from pancreas_mtl.build.training import network, num_processes
from pancreas_mtl.configuration import did_you_mean, plain
from pancreas_mtl.data.augment import AugmentConfig
from pancreas_mtl.data.datamodule import SamplingConfig
from pancreas_mtl.data.plan import PlanConfig, load_plan
from pancreas_mtl.errors import UsageError
from pancreas_mtl.evaluation.task import Task
from pancreas_mtl.inference.bundle import load_bundle
from pancreas_mtl.losses.joint import LossConfig
from pancreas_mtl.metrics.score import MASK_TERMS, selection_score
from pancreas_mtl.models.classifiers import HEADS
from pancreas_mtl.models.network import NetworkConfig
from pancreas_mtl.training.module import OptimizerConfig
from pancreas_mtl.training.pictures import PictureConfig
from pancreas_mtl.training.warm_start import WarmStart, fitting_bundle
from pancreas_mtl.types import Plan

TRAINER_ARGUMENTS = inspect.signature(pl.Trainer).parameters.keys()
SECTIONS: dict[str, type] = {
    "augment": AugmentConfig,
    "loss": LossConfig,
    "model": NetworkConfig,  # and WarmStart
    "optimizer": OptimizerConfig,
    "pictures": PictureConfig,
    "plan": PlanConfig,
    "sampling": SamplingConfig,
    "task": Task,
}
SCALARS: dict[str, Any] = {
    "seed": int,
    "patience": int,
    "validate_every": int,
    "overfit_cases": int,
    "workers": int | None,
    "trainer.max_epochs": int,
    **{f"data.num_{part}": int | None for part in ("train", "validation", "test")},  # phantoms
}
"""Of what kind the keys are that no dataclass holds."""

LEAST = {"seed": 0, "patience": 1, "validate_every": 1, "trainer.max_epochs": 1}
"""The smallest values that mean something."""


def check(config: DictConfig) -> None:
    """Raise a `UsageError` for a key or value that would fail later, before any work is done."""
    _check_values(config)
    _check_trainer(config)
    _check_weights(config)
    root, run_dir = Path(config.data.root).resolve(), Path(config.output_dir).resolve()
    if root.is_relative_to(run_dir):
        raise UsageError(
            f"output_dir={config.output_dir} holds the dataset, data.root={config.data.root}: "
            "give another output_dir"
        )


def _check_values(config: DictConfig) -> None:
    for key, wanted in SCALARS.items():
        check_type(key, OmegaConf.select(config, key), wanted)
    for key, least in LEAST.items():
        if (value := OmegaConf.select(config, key)) < least:
            raise UsageError(f"{key}={value}: has to be {least} or more")
    for section, kind in SECTIONS.items():
        settings(kind, config, section)
    if config.model.head not in (*HEADS, "none"):
        known = ", ".join(HEADS)
        raise UsageError(f"model.head={config.model.head}: choose one of {known} or none")
    warm_start, weights = settings(WarmStart, config, "model"), plain(config.task.score)
    selection_score({}, weights)
    if config.model.head == "none":
        _check_masks_alone(warm_start, weights)


def _check_masks_alone(warm_start: WarmStart, weights: Mapping[str, float]) -> None:
    """What is wrong only where there is no subtype head."""
    if {"encoder", "decoder"} <= set(warm_start.freeze):
        raise UsageError("model.freeze: leaves nothing to train without a head; leave out one part")
    if not any(weights.get(term) for term in MASK_TERMS):
        raise UsageError(
            "task.score: without a subtype head nothing of it is measured; give weights to "
            f"{' and '.join(MASK_TERMS)}"
        )


def _check_trainer(config: DictConfig) -> None:
    if config.trainer.get("max_steps", -1) != -1:
        raise UsageError("trainer.max_steps: trainings end with an epoch; give trainer.max_epochs")
    for name in config.trainer.keys() - TRAINER_ARGUMENTS:
        hint = did_you_mean(name, TRAINER_ARGUMENTS)
        raise UsageError(f"trainer.{name}: no such argument of Lightning's Trainer{hint}")
    if config.trainer.accelerator in ("gpu", "cuda") and not _has_gpu():
        raise UsageError(
            f"trainer.accelerator={config.trainer.accelerator}: no GPU here; use trainer=auto"
        )
    if config.logger.tensorboard and find_spec("tensorboard") is None:
        raise UsageError(
            "logger.tensorboard=true: tensorboard is not installed; "
            "pip install 'pancreas-mtl[tensorboard]'"
        )
    _check_torchrun(num_processes(config))


def _check_torchrun(wanted: int) -> None:
    """Raise a `UsageError` where torchrun started another number of them than `trainer` asks for.

    Lightning would say so after the data are prepared, or each would train alone in one folder.
    """
    if TorchElasticEnvironment.detect() and TorchElasticEnvironment().world_size() != wanted:
        raise UsageError(
            f"torchrun started {TorchElasticEnvironment().world_size()} processes, and "
            f"trainer.devices times trainer.num_nodes is {wanted}: use trainer=ddp, and give both "
            "the same"
        )


def _check_weights(config: DictConfig) -> None:
    if config.model.pretrained is not None and not Path(config.model.pretrained).is_dir():
        raise UsageError(
            f"model.pretrained={config.model.pretrained}: no such folder; give the bundle/ of a run"
        )
    if config.plan.bundle is not None:
        check_network(config, load_plan(Path(config.plan.bundle) / "plan.json"))
    elif config.model.pretrained is not None:
        load_bundle(Path(config.model.pretrained))


def check_network(config: DictConfig, plan: Plan) -> None:
    """Raise a `UsageError` where `model` does not fit the plan; no memory is taken for it."""
    with torch.device("meta"):
        outline = network(config, plan)
    if config.model.pretrained is not None:
        fitting_bundle(outline, config.model.pretrained)


def _has_gpu() -> bool:
    return torch.cuda.is_available() or torch.backends.mps.is_available()
