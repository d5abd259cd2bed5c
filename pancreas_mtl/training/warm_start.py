"""Starts a training from the weights of another one; what fits is taken, the rest is listed."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pancreas_mtl.data.cases import dataset_of
from pancreas_mtl.data.files import read_yaml
from pancreas_mtl.errors import UsageError
from pancreas_mtl.inference.bundle import Bundle, load_bundle
from pancreas_mtl.models.network import PARTS, MultitaskUNet
from pancreas_mtl.types import Plan

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class WarmStart:
    """`pretrained` is a bundle to take weights from; `freeze` names parts that are not trained.

    The parts are those of `network.PARTS`: encoder, decoder, head.
    """

    pretrained: str | None = None
    freeze: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for part in self.freeze:
            if part not in PARTS:
                raise UsageError(f"model.freeze={part}: choose of {', '.join(PARTS)}")
        if set(self.freeze) == set(PARTS):
            raise UsageError("model.freeze: leaves nothing to train; leave out one part")


@dataclass(frozen=True)
class Match:
    """Names of weights by what became of them."""

    taken: tuple[str, ...]
    other_shape: tuple[str, ...]  # in both, but of different shapes: not taken
    other_head: tuple[str, ...]  # in both, but of heads that pool otherwise: not taken
    missing: tuple[str, ...]  # of the network, not in the bundle: they start at random
    unused: tuple[str, ...]  # of the bundle, not in the network


def warm_start(
    network: MultitaskUNet, config: WarmStart, plan: Plan, *, run: Mapping[str, Any]
) -> None:
    """Load what fits and freeze what is to be frozen, in place; the log lists what did not fit.

    Args:
        network: to start.
        config: from what, and what is to stay.
        plan: of this run.
        run: `data` and `fold` of this run, to be compared with the bundle's.

    Raises:
        UsageError: the bundle cannot be read, or nothing of it fits.
    """
    if config.pretrained is not None:
        bundle = fitting_bundle(network, config.pretrained)
        match = load_matching(network, bundle.network)
        _report(match, config.pretrained, bundle.plan, plan)
        for source in held_out_known_to(config.pretrained, run):
            log.warning(
                "warm start: %s, so its weights may know the cases that fold %s holds out: their "
                "figures are not out of fold",
                source,
                run["fold"],
            )
    for part in config.freeze:
        for parameter in network.parameters_of(part):
            parameter.requires_grad = False


def fitting_bundle(network: MultitaskUNet, folder: str) -> Bundle:
    """The bundle in the folder; the network may be an outline on the device `meta`.

    Raises:
        UsageError: the bundle cannot be read, or nothing of it fits.
    """
    bundle = load_bundle(Path(folder))
    if not _match(network, bundle.network).taken:
        raise UsageError(
            f"model.pretrained={folder}: no weight of it fits this network; "
            "train with plan.bundle of the same folder"
        )
    return bundle


def load_matching(network: MultitaskUNet, other: MultitaskUNet) -> Match:
    """Take the other's weights whose name and shape agree, in place.

    Those of a head are taken where both heads pool the same stages in the same way; elsewhere
    shapes may agree, but not what they stand for.
    """
    match, weights = _match(network, other), other.state_dict()
    network.load_state_dict({name: weights[name] for name in match.taken}, strict=False)
    return match


def _match(network: MultitaskUNet, other: MultitaskUNet) -> Match:
    own, weights = network.state_dict(), other.state_dict()
    same_head = _pooling_of(network) == _pooling_of(other)
    taken, other_shape, other_head = [], [], []
    for name in [name for name in weights if name in own]:
        if not same_head and name.split(".")[0] in PARTS["head"]:
            other_head.append(name)
        elif own[name].shape != weights[name].shape:
            other_shape.append(name)
        else:
            taken.append(name)
    return Match(
        taken=tuple(taken),
        other_shape=tuple(other_shape),
        other_head=tuple(other_head),
        missing=tuple(n for n in own if n not in weights),
        unused=tuple(n for n in weights if n not in own),
    )


def _pooling_of(network: MultitaskUNet) -> tuple[type, tuple[int, ...]]:
    """The kind of its head, and the stages that it reads, counted from the finest."""
    head, depth = network.subtype_head, len(network.upsamples) + 1
    return type(head), tuple(stage % depth for stage in getattr(head, "stages", ()))


def held_out_known_to(pretrained: str | None, run: Mapping[str, Any]) -> list[str]:
    """Whose weights may know cases that a run holds out, in words; nothing if none do.

    Args:
        pretrained: the bundle from which the run starts.
        run: `data` and `fold` of the run.
    """
    return [
        f"{folder} was trained on fold {config.get('fold')} of the same data"
        + (", its held-out cases as well" if config.get("overfit_cases") else "")
        for folder, config in _lineage(pretrained)
        if _has_seen(config, run)
    ]


def _lineage(folder: str | None) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """A bundle, what it was started from, and so on, as far as they are still there."""
    known: set[str] = set()
    while folder and folder not in known and (path := Path(folder) / "config.yaml").is_file():
        config = read_yaml(path)
        yield folder, config
        known.add(folder)
        model = config.get("model")
        folder = model.get("pretrained") if isinstance(model, Mapping) else None


def _has_seen(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> bool:
    """Whether a bundle comes from the same data, but from other cases of it."""
    data = theirs.get("data")
    if not isinstance(data, Mapping) or not {"layout", "root"} <= data.keys():
        return False
    same = _dataset(data) == _dataset(ours["data"])
    return same and (theirs.get("fold") != ours["fold"] or bool(theirs.get("overfit_cases")))


def _dataset(section: Mapping[str, Any]) -> tuple[str, Path]:
    return dataset_of(str(section["layout"]), str(section["root"]))


def _report(match: Match, source: str, theirs: Plan, ours: Plan) -> None:
    counts = []
    for part, modules in PARTS.items():
        taken, rest = (
            sum(name.split(".")[0] in modules for name in names)
            for names in (match.taken, match.other_shape + match.other_head + match.missing)
        )
        counts.append(f"{part} {taken} of {taken + rest}")
    log.info("warm start from %s: weights taken: %s", source, ", ".join(counts))
    for what, names in {
        "not taken, of another shape": match.other_shape,
        "not taken, of another head": match.other_head,
        "not in the bundle, started at random": match.missing,
        "of the bundle, not in this network": match.unused,
    }.items():
        if names:
            log.info("warm start: %s: %s", what, ", ".join(names))
    if (theirs.spacing_mm, theirs.intensity) != (ours.spacing_mm, ours.intensity):
        log.warning(
            "warm start: the bundle was trained with another spacing or other intensities than "
            "this run's plan has; plan.bundle=%s takes its plan",
            source,
        )
