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
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from pancreas_mtl.data.files import (
    UNREADABLE,
    atomic_folder,
    atomic_path,
    read_yaml,
    reason,
    write_text,
)
from pancreas_mtl.data.plan import load_plan, save_plan
from pancreas_mtl.errors import UsageError
from pancreas_mtl.inference.calibration import Calibration, read_calibration, save_calibration
from pancreas_mtl.inference.card import CARD, Origin, render_card
from pancreas_mtl.inference.windows import MIRROR_AXES
from pancreas_mtl.models.network import MultitaskUNet, NetworkConfig
from pancreas_mtl.types import Plan

FORMAT = 2
WEIGHTS = "model.safetensors"
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
        if isinstance(named, (list, tuple)):
            return tuple(axis for axis in MIRROR_AXES if axis in named)
        augment = self.config.get("augment")
        flip_p = augment.get("flip_p") if isinstance(augment, Mapping) else None
        return () if flip_p == 0 else MIRROR_AXES


class _PlainDumper(yaml.SafeDumper):
    """Writes a value that comes twice as itself, not as an alias, which `read_yaml` refuses."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def save_bundle(
    folder: Path,
    weights: Mapping[str, Tensor],
    plan: Plan,
    config: Mapping[str, Any],
    calibration: Calibration | None = None,
) -> None:
    """Write a bundle, which is there whole or not at all.

    Raises:
        CaseError: the disk is full, or the folder cannot be written to.
    """
    with atomic_folder(folder) as draft:
        tensors = {name: t.detach().float().cpu().contiguous() for name, t in weights.items()}
        with atomic_path(draft / WEIGHTS) as temporary:  # flushed to the disk
            temporary.write_bytes(save(tensors))
        save_plan(plan, draft / "plan.json")
        text = yaml.dump({"format": FORMAT, **config}, Dumper=_PlainDumper, sort_keys=False)
        write_text(draft / "config.yaml", text)
        save_calibration(draft, calibration or Calibration())
        save_card(draft)


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
    with safe_open(folder / WEIGHTS, "pt") as weights:
        shapes = [weights.get_slice(name).get_shape() for name in weights.keys()]  # noqa: SIM118
    text = render_card(
        plan=load_plan(folder / "plan.json"),
        config=read_yaml(folder / "config.yaml"),
        parameters=sum(math.prod(shape) for shape in shapes),
        origin=origin,
        metrics=metrics,
    )
    write_text(folder / CARD, text)


def load_bundle(folder: Path) -> Bundle:
    """Read a bundle and build its network, in evaluation mode on the CPU.

    Nothing is allocated on the word of the plan: the weights have to be there first.

    Raises:
        UsageError: a file is missing or damaged, or the bundle is of another version.
    """
    if not folder.is_dir():
        raise UsageError(f"model={folder}: no such folder; give the bundle/ of a training run")
    if (folder / "bundle").is_dir():
        raise UsageError(f"model={folder} is a run's folder: give model={folder / 'bundle'}")
    plan = load_plan(folder / "plan.json")
    config = read_yaml(folder / "config.yaml")
    if config.get("format") != FORMAT:
        found = repr(config.get("format"))[:80]
        raise UsageError(
            f"{folder / 'config.yaml'}: bundle format {found}, this version reads {FORMAT}; "
            "train again or use the version that wrote it"
        )
    weights = _read_weights(folder / WEIGHTS)
    with torch.device("meta"):
        outline = build_network(plan, config.get("model"), folder / "config.yaml")
    _check_fit(outline, weights, folder / WEIGHTS)
    network = build_network(plan, config.get("model"), folder / "config.yaml")
    network.load_state_dict(weights)
    return Bundle(
        network.eval(), plan, config, read_calibration(folder), digest=bundle_digest(folder)
    )


def build_network(plan: Plan, model: Any, source: Path) -> MultitaskUNet:
    """The network that a `model` section of plain values describes."""
    try:
        settings = {key: value for key, value in dict(model).items() if key not in TRAINING_ONLY}
        settings["stages"] = tuple(int(s) for s in settings["stages"])
        return MultitaskUNet(plan, NetworkConfig(**settings))
    except (*UNREADABLE, RuntimeError, ArithmeticError) as error:
        raise UsageError(
            f"{source}: model is not usable ({reason(error)}); restore it from the run"
        ) from None


def _check_fit(outline: MultitaskUNet, weights: Mapping[str, Tensor], path: Path) -> None:
    """Refuse weights of another network, or that are not finite."""
    expected = {name: tuple(tensor.shape) for name, tensor in outline.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            raise UsageError(
                f"{path}: does not fit plan.json and config.yaml ({name} is "
                f"{found.get(name, 'not there')} instead of {expected.get(name, 'not there')}); "
                "restore the bundle from its run"
            )
        if not torch.isfinite(weights[name]).all():
            raise UsageError(f"{path}: {name} is not finite; restore the bundle from its run")


def bundle_digest(folder: Path) -> str:
    """A name for the bundle's content."""
    digest = hashlib.blake2b(digest_size=16)
    for name in (WEIGHTS, "plan.json", "config.yaml", "calibration.json"):
        path = folder / name
        digest.update(name.encode())
        if path.exists():
            digest.update(path.read_bytes())
    return digest.hexdigest()


def _read_weights(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except FileNotFoundError:
        raise UsageError(f"{path}: not found; give a whole bundle") from None
    except (OSError, SafetensorError) as error:
        raise UsageError(f"{path}: damaged ({reason(error)}); restore it from the run") from None
