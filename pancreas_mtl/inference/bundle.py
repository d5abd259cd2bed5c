"""A bundle: the folder with all that prediction needs. Weights, plan, config; no pickle, no code.

    model.safetensors   the averaged weights, float32
    plan.json           see `data/plan.py`
    config.yaml         the resolved configuration of the run; `model` rebuilds the network
    calibration.json    what was fitted on held-out cases, see `calibration.py` (optional)
    README.md           the model card, for people; no part of the digest

Nothing of it is ever executed: the config only names built-in choices.
"""

from __future__ import annotations

import hashlib
import math
import shutil
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from pancreas_mtl.data.files import write_text
from pancreas_mtl.data.plan import load_plan, save_plan
from pancreas_mtl.errors import UsageError
from pancreas_mtl.inference.calibration import Calibration, read_calibration, save_calibration
from pancreas_mtl.inference.card import CARD, Origin, render_card
from pancreas_mtl.inference.windows import MIRROR_AXES
from pancreas_mtl.models.network import MultitaskUNet, NetworkConfig
from pancreas_mtl.types import Plan

FORMAT = 1
TRAINING_ONLY = ("pretrained", "freeze")  # keys of `model` that say how it came to be


@dataclass(frozen=True)
class Bundle:
    """A trained model, ready to predict; `digest` names its content."""

    network: MultitaskUNet
    plan: Plan
    config: Mapping[str, Any]
    calibration: Calibration = field(default_factory=Calibration)
    digest: str = ""

    @property
    def mirror_axes(self) -> tuple[int, ...]:
        """Axes along which the network was trained on mirrored patches; without a word, all."""
        named = self.config.get("mirror_axes")
        if isinstance(named, Sequence):
            return tuple(axis for axis in MIRROR_AXES if axis in named)
        augment = self.config.get("augment")
        mirrored = not isinstance(augment, Mapping) or augment.get("flip_p", 0.5) > 0
        return MIRROR_AXES if mirrored else ()


def save_bundle(
    folder: Path,
    weights: Mapping[str, Tensor],
    plan: Plan,
    config: Mapping[str, Any],
    calibration: Calibration | None = None,
) -> None:
    """Write a bundle beside its place and move it there: it is there whole or not at all."""
    partial = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}")
    partial.mkdir(parents=True)
    try:
        tensors = {name: t.detach().float().cpu().contiguous() for name, t in weights.items()}
        save_file(tensors, partial / "model.safetensors")
        save_plan(plan, partial / "plan.json")
        text = yaml.safe_dump({"format": FORMAT, **config}, sort_keys=False)
        (partial / "config.yaml").write_text(text)
        save_calibration(partial, calibration or Calibration())
        save_card(partial)
        if folder.exists():
            shutil.rmtree(folder)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def find_bundles(path: Path) -> list[Path]:
    """The bundle `path`, or the bundles directly in it, which are an ensemble."""
    if (path / "config.yaml").exists() or not path.is_dir():
        return [path]
    return sorted(one for one in path.iterdir() if (one / "config.yaml").exists()) or [path]


def save_card(
    folder: Path, *, origin: Origin | None = None, metrics: Mapping[str, Any] | None = None
) -> None:
    """Write or replace the model card of a bundle.

    Args:
        folder: the bundle.
        origin: what it was trained on, None where that is not known.
        metrics: the content of the `metrics.json` of its run, None before an evaluation.
    """
    with safe_open(folder / "model.safetensors", "pt") as weights:
        shapes = [weights.get_slice(name).get_shape() for name in weights.keys()]  # noqa: SIM118
    text = render_card(
        plan=load_plan(folder / "plan.json"),
        config=_read_yaml(folder / "config.yaml"),
        parameters=sum(math.prod(shape) for shape in shapes),
        origin=origin,
        metrics=metrics,
    )
    write_text(folder / CARD, text)


def load_bundle(folder: Path) -> Bundle:
    """Read a bundle and build its network, in evaluation mode on the CPU.

    Raises:
        UsageError: a file is missing or damaged, or the bundle is of another version.
    """
    if not folder.is_dir():
        raise UsageError(f"model={folder}: no such folder; give the bundle/ of a training run")
    plan = load_plan(folder / "plan.json")
    config = _read_yaml(folder / "config.yaml")
    if config.get("format") != FORMAT:
        raise UsageError(
            f"{folder / 'config.yaml'}: bundle format {config.get('format')!r}, this version reads "
            f"{FORMAT}; train again or use the version that wrote it"
        )
    network = build_network(plan, config.get("model"), folder / "config.yaml")
    weights = _read_weights(folder / "model.safetensors")
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        raise UsageError(
            f"{folder / 'model.safetensors'}: does not fit plan.json and config.yaml "
            f"({str(error).splitlines()[-1].strip()}); restore the bundle from its run"
        ) from error
    return Bundle(
        network.eval(), plan, config, read_calibration(folder), digest=bundle_digest(folder)
    )


def build_network(plan: Plan, model: Any, source: Path) -> MultitaskUNet:
    """The network that a `model` section of plain values describes."""
    try:
        settings = {key: value for key, value in dict(model).items() if key not in TRAINING_ONLY}
        settings["stages"] = tuple(int(s) for s in settings["stages"])
        return MultitaskUNet(plan, NetworkConfig(**settings))
    except (TypeError, ValueError, KeyError) as error:
        raise UsageError(f"{source}: model is not usable ({error})") from error


def bundle_digest(folder: Path) -> str:
    """A name for the bundle's content."""
    digest = hashlib.blake2b(digest_size=16)
    for name in ("model.safetensors", "plan.json", "config.yaml", "calibration.json"):
        path = folder / name
        digest.update(name.encode())
        if path.exists():
            digest.update(path.read_bytes())
    return digest.hexdigest()


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        config = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        raise UsageError(f"{path}: not found; is this a bundle?") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise UsageError(f"{path}: not readable as plain YAML ({reason})") from error
    if not isinstance(config, dict):
        raise UsageError(f"{path}: not a configuration")
    return config


def _read_weights(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except FileNotFoundError:
        raise UsageError(f"{path}: not found; is this a bundle?") from None
    except (OSError, SafetensorError) as error:
        raise UsageError(f"{path}: damaged ({error}); restore it from the run") from error
