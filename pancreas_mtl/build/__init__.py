"""From configuration to objects, which know nothing of Hydra.

settings    sections become dataclasses, mistyped keys are named
checks      what else is wrong with a configuration, before any work
data        cases, folds, plan, cache, loaders
training    network, module, trainer, loggers
prediction  predictor and its cases
"""

from pancreas_mtl.build.checks import check
from pancreas_mtl.build.data import (
    Dataset,
    Prepared,
    cases,
    claim_plan,
    data_facts,
    datamodule,
    dataset,
    origin,
    plan,
    prepare,
    workers,
)
from pancreas_mtl.build.prediction import fingerprint_of, predictor, sources
from pancreas_mtl.build.settings import settings, shard
from pancreas_mtl.build.training import logging_run, module, network, num_processes, trainer
from pancreas_mtl.configuration import plain

__all__ = [
    "Dataset",
    "Prepared",
    "cases",
    "check",
    "claim_plan",
    "data_facts",
    "datamodule",
    "dataset",
    "fingerprint_of",
    "logging_run",
    "module",
    "network",
    "num_processes",
    "origin",
    "plain",
    "plan",
    "predictor",
    "prepare",
    "settings",
    "shard",
    "sources",
    "trainer",
    "workers",
]
