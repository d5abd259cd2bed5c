"""From configuration to objects: beside the commands the only place that knows Hydra.

settings    sections become dataclasses, mistyped keys are named
data        cases, folds, plan, cache, loaders
training    network, module, trainer, loggers
prediction  predictor and its cases
"""

from pancreas_mtl.build.data import (
    Dataset,
    Prepared,
    cases,
    datamodule,
    dataset,
    origin,
    prepare,
    workers,
)
from pancreas_mtl.build.prediction import fingerprint_of, predictor, sources
from pancreas_mtl.build.settings import check, settings
from pancreas_mtl.build.training import finish_logging, module, network, trainer
from pancreas_mtl.configuration import plain

__all__ = [
    "Dataset",
    "Prepared",
    "cases",
    "check",
    "datamodule",
    "dataset",
    "fingerprint_of",
    "finish_logging",
    "module",
    "network",
    "origin",
    "plain",
    "predictor",
    "prepare",
    "settings",
    "sources",
    "trainer",
    "workers",
]
