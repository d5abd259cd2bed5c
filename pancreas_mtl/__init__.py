"""Pancreas and lesion segmentation with lesion subtypes from CT, by one shared network.

The tour, in the order of the flow:

    types        the nouns, and the letters of the shapes
    errors       what a user can mend
    data         cases, audit, fingerprint, plan, cache, patches, augmentation; phantoms
    models       the network and its subtype heads
    losses       what training minimises
    metrics      what evaluation reports
    inference    windows, predictor, pipeline, bundle
    training     the LightningModule and its callbacks
    evaluation   from predictions to numbers and a report
    interop      other formats and frameworks
    benchmarks   paired timings against stock nnU-Net
    build        from configuration to objects
    search       a search over the keys of training
    configuration, help    what conf/ offers, and says about it
    command      how a command starts and ends; the commands lie beside it

Data flows one way: layout, cases, audit, fingerprint, plan, cache, patches, augmentation, network,
losses, bundle; then bundle and CT, windows, scores, the scanner's grid, mask and subtype,
evaluation, report.
"""

import os
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pancreas_mtl.inference.predictor import Predictor

__all__ = ["Predictor"]

# OpenVINO reports its use to its makers where this package is found; so here it is not found.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
# Ray, which hydra/launcher=ray starts, reports it unless this says otherwise.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")


def __getattr__(name: str) -> Any:
    """Import `Predictor` on first use, so that commands without torch start fast."""
    if name == "Predictor":
        from pancreas_mtl.inference.predictor import Predictor

        return Predictor
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
