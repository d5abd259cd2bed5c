"""From a configuration to a dataset that can be trained on: cases, folds, plan, cache."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from pancreas_mtl.build.checks import check_network
from pancreas_mtl.build.settings import settings
from pancreas_mtl.configuration import differences, plain
from pancreas_mtl.data.audit import audit_cases
from pancreas_mtl.data.cases import read_cases, read_official_folds
from pancreas_mtl.data.datamodule import PancreasDataModule, SamplingConfig
from pancreas_mtl.data.files import one_at_a_time, read_yaml, write_json, write_text
from pancreas_mtl.data.fingerprint import fingerprint
from pancreas_mtl.data.phantom import write_dataset
from pancreas_mtl.data.phantom.dataset import MANIFEST
from pancreas_mtl.data.plan import PlanConfig, load_plan, make_plan, save_plan
from pancreas_mtl.data.pool import default_workers
from pancreas_mtl.data.preprocess import CacheEntry, preprocess
from pancreas_mtl.data.splits import Split, Splits, make_splits, save_splits
from pancreas_mtl.errors import CaseError, UsageError
from pancreas_mtl.inference.card import Origin, Part
from pancreas_mtl.training.warm_start import held_out_known_to
from pancreas_mtl.types import NUM_SUBTYPES, Case, Plan

log = logging.getLogger(__name__)

PREPROCESS_BYTES_PER_CASE = 1.5e9  # the largest crops of the task, with room
PLANNED_BY = "preprocess.yaml"
DECIDING = ("data.layout", "fold", "overfit_cases", "plan")  # the dataset may be mounted elsewhere


@dataclass(frozen=True)
class Dataset:
    """The cases of a dataset by name, and which of them train and validate."""

    cases: dict[str, Case]
    splits: Splits
    split: Split

    @property
    def teaches_subtypes(self) -> bool:
        """Whether the subtype of any case to train on is known."""
        return any(self.cases[name].subtype is not None for name in self.split.train)

    def part(self, names: Sequence[str]) -> list[Case]:
        """The cases of these names, in their order."""
        return [self.cases[name] for name in names]


@dataclass(frozen=True)
class Prepared:
    """A dataset, ready to train on."""

    plan: Plan
    train: list[CacheEntry]
    validation: list[CacheEntry]


def dataset(config: DictConfig) -> Dataset:
    """Read the dataset's cases and choose the fold."""
    everything = cases(config.data, workers=workers(config))
    splits = make_splits(everything, _official_folds(config.data))
    split = splits.choose(config.fold)
    if config.overfit_cases:
        split = _few_cases(split, config.overfit_cases)
        log.warning("overfit_cases: the same %d cases train and validate", len(split.train))
    return Dataset({case.name: case for case in everything}, splits, split)


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


def origin(config: DictConfig, found: Dataset) -> Origin:
    """What a model of this run is trained on, for its card."""
    root = Path(config.data.root)
    parts = [
        _part(name, found.part(names))
        for name, names in (("train", found.split.train), ("validation", found.split.validation))
    ]
    phantom = config.data.layout == "phantom" or (root / MANIFEST).exists()
    return Origin(str(config.data.layout), phantom, tuple(parts), _held_out_known_to(config))


def _held_out_known_to(config: DictConfig) -> tuple[str, ...]:
    """Why the figures of the cases that the run holds out are not out of fold, if they are not."""
    run = {"data": plain(config.data), "fold": config.fold}
    found = held_out_known_to(config.model.pretrained, run)
    if config.overfit_cases:
        found.append("overfit_cases: they train it as well")
    return tuple(found)


def _part(name: str, cases: Sequence[Case]) -> Part:
    subtypes = [sum(case.subtype == subtype for case in cases) for subtype in range(NUM_SUBTYPES)]
    return Part(name, len(cases), sum(case.mask is not None for case in cases), tuple(subtypes))


def prepare(config: DictConfig, found: Dataset, run_dir: Path) -> Prepared:
    """Audit, plan and preprocess; what is done already is kept.

    Only one process of a run works at a time: the first one does it, the others find it done.
    """
    train, validation = found.part(found.split.train), found.part(found.split.validation)
    chosen = plan(config, found, run_dir)
    check_network(config, chosen)
    with one_at_a_time(run_dir):
        cache_dir = Path(config.paths.cache)
        wanted = {case.name: case for case in [*train, *validation]}
        made = preprocess(list(wanted.values()), chosen, cache_dir, workers=workers(config))
    entries = dict(zip(wanted, made, strict=True))
    return Prepared(chosen, [entries[c.name] for c in train], [entries[c.name] for c in validation])


def plan(config: DictConfig, found: Dataset, run_dir: Path) -> Plan:
    """The plan in the folder; it is made first, from the training cases, unless it is there.

    Only one process makes it, the others wait for it.
    """
    path = run_dir / "plan.json"
    with one_at_a_time(run_dir):
        save_splits(found.splits, run_dir / "splits.json")
        if not path.exists():
            if config.audit:
                _audit(list(found.cases.values()), run_dir, workers(config))
            save_plan(_plan(config, found.part(found.split.train)), path)
        return load_plan(path)


def claim_plan(config: DictConfig, output_dir: Path) -> None:
    """Write what the folder's plan is made by; refuse one whose plan was made by something else.

    Raises:
        UsageError: the folder holds such a plan.
    """
    path = output_dir / PLANNED_BY
    wanted = {key: plain(OmegaConf.select(config, key)) for key in DECIDING}
    with one_at_a_time(output_dir):
        planned = (output_dir / "plan.json").exists()
        if planned and path.exists():
            for key, (old, new) in differences(read_yaml(path), wanted).items():
                raise UsageError(
                    f"output_dir={output_dir} holds a plan with {key}={old}, not {new}: leave it "
                    "as it was, or give another output_dir"
                )
        elif planned:
            raise UsageError(
                f"output_dir={output_dir} holds a plan, but no {PLANNED_BY} that says how it was "
                "made: give another output_dir"
            )
        else:
            write_text(path, OmegaConf.to_yaml(wanted))


def _plan(config: DictConfig, train: list[Case]) -> Plan:
    """The plan of `plan.bundle`, or one made for the training cases."""
    wanted = settings(PlanConfig, config, "plan")
    if wanted.bundle is not None:
        return load_plan(Path(wanted.bundle) / "plan.json")
    return make_plan(fingerprint(train, workers=workers(config)), wanted)


def workers(config: DictConfig) -> int:
    """Processes that read and preprocess cases."""
    return config.workers or default_workers(PREPROCESS_BYTES_PER_CASE)


def datamodule(config: DictConfig, prepared: Prepared) -> PancreasDataModule:
    """The loaders of a configuration; a network without subtype head is told no subtype."""
    train, validation = prepared.train, prepared.validation
    if config.model.head == "none":
        train, validation = map(_without_subtypes, (train, validation))
    return PancreasDataModule(
        train,
        validation,
        patch_size=prepared.plan.patch_size,
        batch_size=prepared.plan.batch_size,
        seed=config.seed,
        config=settings(SamplingConfig, config, "sampling"),
    )


def _without_subtypes(entries: list[CacheEntry]) -> list[CacheEntry]:
    return [replace(entry, subtype=None) for entry in entries]


def _few_cases(split: Split, count: int) -> Split:
    """Training cases, evenly spaced over their names and so over subtypes, for both parts."""
    few = split.train[:: max(1, len(split.train) // count)][:count]
    return Split(few, few)


def data_facts(config: DictConfig, prepared: Prepared) -> dict[str, Any]:
    """What a run's record says of its data; the fingerprint is of the files' very contents."""
    entries = [*prepared.train, *prepared.validation]
    contents = sorted([entry.name, entry.path.stem, str(entry.subtype)] for entry in entries)
    digest = hashlib.blake2b(json.dumps(contents).encode(), digest_size=16)
    return {
        "layout": config.data.layout,
        "root": str(Path(config.data.root).absolute()),
        "cases": {"train": len(prepared.train), "validation": len(prepared.validation)},
        "fingerprint": digest.hexdigest(),
        "held_out_known_to": _held_out_known_to(config),
    }


def _official_folds(data: DictConfig) -> list[tuple[list[str], list[str]]] | None:
    return None if data.layout == "phantom" else read_official_folds(data.layout, Path(data.root))


def _audit(cases: Sequence[Case], run_dir: Path, workers: int) -> None:
    report = audit_cases(cases, workers=workers)
    write_json(run_dir / "audit.json", report.as_json())
    log.info("audit: %s", report.summary())
    if report.errors:
        first = report.errors[0]
        more = f" (and {len(report.errors) - 1} more in audit.json)" if report.errors[1:] else ""
        raise CaseError(
            f"audit: {first.case}: {first.message}{more}; mend a copy by "
            "python -m pancreas_mtl.audit fix=true, or go on with audit=false"
        )
