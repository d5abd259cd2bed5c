"""From a configuration to a predictor and the cases that it is to predict."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from pancreas_mtl.configuration import plain
from pancreas_mtl.errors import UsageError
from pancreas_mtl.inference.engines import ENGINES
from pancreas_mtl.inference.maps import MAPS
from pancreas_mtl.inference.pipeline import Source
from pancreas_mtl.inference.predictor import PRESETS, Predictor
from pancreas_mtl.interop.sources import find_sources


def predictor(config: DictConfig) -> Predictor:
    """The predictor that `predict.yaml` describes.

    Raises:
        UsageError: a choice that does not exist, or a bundle that cannot be used.
    """
    for key, choices in {"preset": tuple(PRESETS), "engine": ENGINES}.items():
        if config[key] not in choices:
            raise UsageError(f"{key}={config[key]}: choose one of {', '.join(choices)}")
    models = plain(config.model)
    return Predictor.from_bundle(
        models if isinstance(models, list) else [models],
        preset=config.preset,
        engine=config.engine,
        device=config.device,
        precision=config.precision,
        maps=[name for name in MAPS if config[name]],
    )


def sources(config: DictConfig, predictor: Predictor) -> list[Source]:
    """The cases that `input` stands for; DICOM answers name the predictor's bundles.

    Raises:
        UsageError: there are none, or `output_dir` holds them, as a dataset's root does.
    """
    source, output_dir = Path(config.input), Path(config.output_dir)
    if source.is_dir() and output_dir.resolve() in source.resolve().parents:
        raise UsageError(
            f"output_dir={output_dir} holds the input, {source}: give another output_dir"
        )
    models = [bundle.digest for bundle in predictor.bundles]
    return find_sources(source, config.series, config.output_format, models)


def fingerprint_of(facts: dict[str, Any]) -> str:
    """A name for what decides a prediction: models and settings, but not where it goes.

    The shards of a prediction have the same one.
    """
    apart = ("output_dir", "overwrite", "shard")
    config = {k: v for k, v in facts["config"].items() if k not in apart}
    text = json.dumps([facts["bundles"], config], sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
