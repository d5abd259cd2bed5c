"""From configuration to objects: beside the commands the only place that knows Hydra.

Every section of the configuration has a frozen dataclass with the same fields, so a key that does
not exist fails here by its name.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import pytorch_lightning as pl
import torch
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.callbacks import (
    Callback,
    EarlyStopping,
    LearningRateMonitor,
    ModelCheckpoint,
    TQDMProgressBar,
)
from pytorch_lightning.loggers import Logger, TensorBoardLogger, WandbLogger

from pancreas_mtl.data.audit import audit_cases
from pancreas_mtl.data.augment import Augment, AugmentConfig
from pancreas_mtl.data.cases import read_cases, read_official_folds
from pancreas_mtl.data.datamodule import PancreasDataModule, SamplingConfig
from pancreas_mtl.data.fingerprint import fingerprint
from pancreas_mtl.data.images import find_images
from pancreas_mtl.data.phantom import write_dataset
from pancreas_mtl.data.plan import PlanConfig, load_plan, make_plan, save_plan
from pancreas_mtl.data.pool import default_workers
from pancreas_mtl.data.preprocess import CacheEntry, preprocess
from pancreas_mtl.data.splits import Split, Splits, make_splits, save_splits
from pancreas_mtl.errors import CaseError, UsageError
from pancreas_mtl.inference.engines import cpu_has_bf16
from pancreas_mtl.inference.pipeline import Source, nifti_source
from pancreas_mtl.inference.predictor import PRESETS, Predictor
from pancreas_mtl.losses.joint import LossConfig
from pancreas_mtl.metrics.score import selection_score
from pancreas_mtl.models.classifiers import HEADS
from pancreas_mtl.models.network import MultitaskUNet, NetworkConfig
from pancreas_mtl.training.callbacks import CollapseDetector, History
from pancreas_mtl.training.module import MultitaskModule, OptimizerConfig
from pancreas_mtl.types import Case, Plan

log = logging.getLogger(__name__)
Settings = TypeVar("Settings")

PREPROCESS_BYTES_PER_CASE = 1.5e9  # the largest crops of the task, with room
SCORE = "val/score"


SECTIONS: dict[str, type] = {
    "augment": AugmentConfig,
    "loss": LossConfig,
    "model": NetworkConfig,
    "optimizer": OptimizerConfig,
    "plan": PlanConfig,
    "sampling": SamplingConfig,
}


@dataclass(frozen=True)
class Dataset:
    """The cases of a dataset by name, and which of them train and validate."""

    cases: dict[str, Case]
    splits: Splits
    split: Split

    def part(self, names: Sequence[str]) -> list[Case]:
        """The cases of these names, in their order."""
        return [self.cases[name] for name in names]


@dataclass(frozen=True)
class Prepared:
    """A dataset, ready to train on."""

    plan: Plan
    train: list[CacheEntry]
    validation: list[CacheEntry]


def check(config: DictConfig) -> None:
    """Raise a `UsageError` for a key or value that would fail later, before any work is done."""
    for section, kind in SECTIONS.items():
        settings(kind, config, section)
    if config.model.head not in HEADS:
        raise UsageError(f"model.head={config.model.head}: choose one of {', '.join(HEADS)}")
    selection_score({}, plain(config.task.score))


def settings(kind: type[Settings], config: DictConfig, section: str) -> Settings:
    """Make the dataclass `kind` from `config[section]`, lists becoming tuples.

    Raises:
        UsageError: a key is not one of the dataclass's fields, or one is missing.
    """
    values = plain(config[section])
    known = {field.name for field in fields(kind)}  # type: ignore[arg-type]
    for key in sorted(set(values) - known):
        raise UsageError(f"{section}.{key}: no such key; {section} has {', '.join(sorted(known))}")
    try:
        return kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})
    except TypeError as error:
        raise UsageError(f"{section}: {error}") from error


def plain(config: Any) -> Any:
    """The resolved configuration as dicts, lists and scalars."""
    return OmegaConf.to_container(config, resolve=True)


def cases(data: DictConfig, *, workers: int) -> list[Case]:
    """The dataset's cases; a phantom dataset is made first unless it is there."""
    root = Path(data.root)
    if data.layout != "phantom":
        return read_cases(data.layout, root)
    write_dataset(
        root,
        num_train=data.num_train,
        num_validation=data.num_validation,
        num_test=data.num_test,
        seed=data.seed,
        difficulty=data.difficulty,
        size=data.size,
        workers=workers,
    )
    return read_cases("quiz", root)


def dataset(config: DictConfig) -> Dataset:
    """Read the dataset's cases and choose the fold."""
    everything = cases(config.data, workers=_workers(config))
    splits = make_splits(everything, _official_folds(config.data))
    return Dataset({case.name: case for case in everything}, splits, splits.choose(config.fold))


def prepare(config: DictConfig, found: Dataset, run_dir: Path) -> Prepared:
    """Audit, plan and preprocess; what is done already is kept.

    Only one process of a run works at a time: the first one does it, the others find it done.
    """
    train, validation = found.part(found.split.train), found.part(found.split.validation)
    with _one_at_a_time(run_dir):
        save_splits(found.splits, run_dir / "splits.json")
        plan_path = run_dir / "plan.json"
        if not plan_path.exists():
            if config.audit:
                _audit(list(found.cases.values()), run_dir, _workers(config))
            measured = fingerprint(train, workers=_workers(config))
            save_plan(make_plan(measured, settings(PlanConfig, config, "plan")), plan_path)
        plan = load_plan(plan_path)
        cache_dir = Path(config.paths.cache)
        entries = preprocess([*train, *validation], plan, cache_dir, workers=_workers(config))
    return Prepared(plan, entries[: len(train)], entries[len(train) :])


def _workers(config: DictConfig) -> int:
    return config.workers or default_workers(PREPROCESS_BYTES_PER_CASE)


def _official_folds(data: DictConfig) -> list[tuple[list[str], list[str]]] | None:
    return None if data.layout == "phantom" else read_official_folds(data.layout, Path(data.root))


def _audit(cases: Sequence[Case], run_dir: Path, workers: int) -> None:
    report = audit_cases(cases, workers=workers)
    (run_dir / "audit.json").write_text(json.dumps(report.as_json(), indent=1) + "\n")
    log.info("audit: %s", report.summary())
    if report.errors:
        first = report.errors[0]
        more = f" (and {len(report.errors) - 1} more in audit.json)" if report.errors[1:] else ""
        raise CaseError(
            f"audit: {first.case}: {first.message}{more}; mend a copy by "
            "python -m pancreas_mtl.audit fix=true, or go on with audit=false"
        )


@contextmanager
def _one_at_a_time(run_dir: Path) -> Iterator[None]:
    with (run_dir / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def network(config: DictConfig, plan: Plan) -> MultitaskUNet:
    """The network of a configuration."""
    return MultitaskUNet(plan, settings(NetworkConfig, config, "model"))


def module(config: DictConfig, plan: Plan) -> MultitaskModule:
    """The LightningModule, with its network."""
    return MultitaskModule(
        network(config, plan),
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


def datamodule(config: DictConfig, prepared: Prepared) -> PancreasDataModule:
    """The loaders of a configuration."""
    return PancreasDataModule(
        prepared.train,
        prepared.validation,
        patch_size=prepared.plan.patch_size,
        batch_size=prepared.plan.batch_size,
        seed=config.seed,
        config=settings(SamplingConfig, config, "sampling"),
    )


def trainer(config: DictConfig, run_dir: Path) -> pl.Trainer:
    """The Lightning trainer; `config.trainer` holds its arguments by their own names."""
    arguments = plain(config.trainer)
    if arguments["precision"] == "auto":
        arguments["precision"] = auto_precision(arguments["accelerator"])
    try:
        return pl.Trainer(
            **arguments,
            default_root_dir=run_dir,
            callbacks=callbacks(config, run_dir),
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


def callbacks(config: DictConfig, run_dir: Path) -> list[Callback]:
    """History, checkpoints, early stopping, the watch for collapse, the progress bar."""
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
        TQDMProgressBar(refresh_rate=5),
        *([LearningRateMonitor("step")] if loggers_wanted(config) else []),
    ]


def loggers_wanted(config: DictConfig) -> bool:
    """Whether anything but metrics.csv is asked for."""
    return bool(config.logger.wandb or config.logger.tensorboard)


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


def predictor(config: DictConfig) -> Predictor:
    """The predictor that `predict.yaml` describes.

    Raises:
        UsageError: a choice that does not exist, or a bundle that cannot be used.
    """
    for key, choices in {"preset": tuple(PRESETS), "engine": ("torch",)}.items():
        if config[key] not in choices:
            raise UsageError(f"{key}={config[key]}: choose one of {', '.join(choices)}")
    models = plain(config.model)
    return Predictor.from_bundle(
        models if isinstance(models, list) else [models],
        preset=config.preset,
        device=config.device,
        precision=config.precision,
    )


def sources(config: DictConfig) -> list[Source]:
    """The cases that `input` stands for."""
    return [nifti_source(path) for path in find_images(Path(config.input))]


def fingerprint_of(facts: dict[str, Any]) -> str:
    """A name for what decides a prediction: models and settings, but not where it goes."""
    config = {k: v for k, v in facts["config"].items() if k not in ("output_dir", "overwrite")}
    text = json.dumps([facts["bundles"], config], sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
