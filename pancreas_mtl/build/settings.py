"""Sections of the configuration become frozen dataclasses with the same fields.

So a key that does not exist fails by its name, before any work is done.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

import pytorch_lightning as pl
import torch
from omegaconf import DictConfig, OmegaConf

from pancreas_mtl.configuration import did_you_mean, plain
from pancreas_mtl.data.augment import AugmentConfig
from pancreas_mtl.data.datamodule import SamplingConfig
from pancreas_mtl.data.plan import PlanConfig
from pancreas_mtl.errors import UsageError
from pancreas_mtl.evaluation.task import Task
from pancreas_mtl.inference.shards import Shard
from pancreas_mtl.losses.joint import LossConfig
from pancreas_mtl.metrics.score import selection_score
from pancreas_mtl.models.classifiers import HEADS
from pancreas_mtl.models.network import NetworkConfig
from pancreas_mtl.training.module import OptimizerConfig
from pancreas_mtl.training.pictures import PictureConfig
from pancreas_mtl.training.warm_start import WarmStart

Settings = TypeVar("Settings")

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


SHARED: dict[type, type] = {NetworkConfig: WarmStart, WarmStart: NetworkConfig}
"""Dataclasses that are made from one section together."""


def settings(kind: type[Settings], config: DictConfig, section: str) -> Settings:
    """Make the dataclass `kind` from `config[section]`, lists becoming tuples.

    Raises:
        UsageError: a key is not one of the dataclass's fields, or one is missing.
    """
    values = plain(config[section])
    own = _names(kind)
    known = own | _names(SHARED.get(kind))
    for key in sorted(set(values) - known):
        hint = did_you_mean(f"{section}.{key}", [f"{section}.{name}" for name in known])
        has = ", ".join(sorted(known))
        raise UsageError(f"{section}.{key}: no such key{hint}; {section} has {has}")
    for name, wanted in get_type_hints(kind).items():
        if name in values:
            _check_type(f"{section}.{name}", values[name], wanted)
    try:
        return kind(
            **{k: tuple(v) if isinstance(v, list) else v for k, v in values.items() if k in own}
        )
    except TypeError as error:
        raise UsageError(f"{section}: {error}") from error


KINDS: Mapping[Any, tuple[str, tuple[type, ...]]] = {
    bool: ("true or false", (bool,)),
    int: ("a whole number", (int,)),
    float: ("a number", (int, float)),
    str: ("text", (str,)),
    tuple: ("a list", (list, tuple)),
    NoneType: ("null", (NoneType,)),
}
SCALARS: dict[str, Any] = {
    "seed": int,
    "patience": int,
    "validate_every": int,
    "overfit_cases": int,
    "workers": int | None,
    "trainer.max_epochs": int | None,
    **{f"data.num_{part}": int | None for part in ("train", "validation", "test")},  # phantoms
}
"""Of what kind the keys are that no dataclass holds."""


def _check_type(key: str, value: Any, wanted: Any) -> None:
    """Raise a `UsageError` where a plain value is of none of the wanted types."""
    options = get_args(wanted) if get_origin(wanted) in (Union, UnionType) else (wanted,)
    known = [KINDS.get(get_origin(option) or option) for option in options]
    accepted = [one for one in known if one is not None]
    if len(accepted) < len(known):
        return  # something richer, which its own code checks
    for _, types in accepted:
        if isinstance(value, types) and (not isinstance(value, bool) or bool in types):
            return
    raise UsageError(f"{key}={value}: has to be {' or '.join(name for name, _ in accepted)}")


def _has_gpu() -> bool:
    return torch.cuda.is_available() or torch.backends.mps.is_available()


def _names(kind: type | None) -> set[str]:
    return {field.name for field in fields(kind)} if kind else set()


def shard(config: DictConfig) -> Shard:
    """Which part of the cases this process takes."""
    return settings(Shard, config, "shard")


def check(config: DictConfig) -> None:
    """Raise a `UsageError` for a key or value that would fail later, before any work is done."""
    for key, wanted in SCALARS.items():
        _check_type(key, OmegaConf.select(config, key), wanted)
    for section, kind in SECTIONS.items():
        settings(kind, config, section)
    if config.model.head not in HEADS:
        raise UsageError(f"model.head={config.model.head}: choose one of {', '.join(HEADS)}")
    settings(WarmStart, config, "model")
    selection_score({}, plain(config.task.score))
    for name in config.trainer.keys() - TRAINER_ARGUMENTS:
        hint = did_you_mean(name, TRAINER_ARGUMENTS)
        raise UsageError(f"trainer.{name}: no such argument of Lightning's Trainer{hint}")
    if config.trainer.accelerator in ("gpu", "cuda") and not _has_gpu():
        raise UsageError(
            f"trainer.accelerator={config.trainer.accelerator}: no GPU here; use trainer=auto"
        )
    if config.model.pretrained is not None and not Path(config.model.pretrained).is_dir():
        raise UsageError(
            f"model.pretrained={config.model.pretrained}: no such folder; give the bundle/ of a run"
        )
    root, run_dir = Path(config.data.root).resolve(), Path(config.output_dir).resolve()
    if root.is_relative_to(run_dir):
        raise UsageError(
            f"output_dir={config.output_dir} holds the dataset, data.root={config.data.root}: "
            "give another output_dir"
        )
