"""A bundle's model card, `README.md`: what it is and was trained on, how good, and how to run it.

The card is made from facts and for people: nothing reads it, and a bundle's digest leaves it out,
so that a better sentence does not make another model of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from pancreas_mtl.data.files import write_text
from pancreas_mtl.types import NUM_SUBTYPES, Plan

CARD = "README.md"
_TEMPLATE, _ENSEMBLE = "card.md.jinja", "ensemble_card.md.jinja"
_METRICS_TITLE = "\n## Metrics\n"
_MEMBER = """
This bundle is part of an ensemble and carries its calibration. The figures below are from before,
with a calibration of its own; the figures of all folds are in the card of the ensemble.
"""
_METRICS = (  # name, where it lies in metrics.json
    ("Whole-pancreas DSC", ("whole_pancreas", "dsc")),
    ("Whole-pancreas NSD", ("whole_pancreas", "nsd")),
    ("Whole-pancreas HD95, mm", ("whole_pancreas", "hd95_mm")),
    ("Lesion DSC", ("lesion", "dsc")),
    ("Lesion NSD", ("lesion", "nsd")),
    ("Subtype macro-F1", ("subtype", "macro_f1")),
    ("Subtype balanced accuracy", ("subtype", "balanced_accuracy")),
    ("Subtype AUROC", ("subtype", "auroc")),
)


@dataclass(frozen=True)
class Part:
    """One part of the training data: how many cases, masks, and cases of each subtype."""

    name: str
    cases: int
    masks: int
    subtypes: tuple[int, ...]  # of NUM_SUBTYPES


@dataclass(frozen=True)
class Origin:
    """What a bundle was trained on; `phantom` where the cases are drawings."""

    layout: str
    phantom: bool
    parts: tuple[Part, ...]
    known: tuple[str, ...] = ()  # why the weights may know the cases that were held out


def render_card(
    *,
    plan: Plan,
    config: Mapping[str, Any],
    parameters: int,
    origin: Origin | None,
    metrics: Mapping[str, Any] | None,
) -> str:
    """The card's text in Markdown, with a header as model hubs read it.

    Args:
        plan: of the bundle.
        config: of the bundle; `experiment`, `fold`, `seed`, `model` and `nnunet` are used where
            they are there.
        parameters: number of weights.
        origin: None where this program did not train it.
        metrics: the content of the run's `metrics.json`, None where there is none.
    """
    model = config.get("model") or {}
    return _render(
        _TEMPLATE,
        variant=config.get("experiment"),
        fold=config.get("fold"),
        seed=config.get("seed"),
        head=model.get("head", "none"),
        nnunet=_cells(config.get("nnunet") or {}),
        plan=plan,
        parameters=parameters,
        origin=origin,
        num_subtypes=NUM_SUBTYPES,
        rows=_rows(metrics) if metrics else [],
        n_cases=metrics["n_cases"] if metrics else 0,
        tolerance_mm=metrics["whole_pancreas"]["nsd_tolerance_mm"] if metrics else None,
        targets=[one for one in metrics["targets"] if one.get("value") is not None]
        if metrics
        else [],
    )


def save_member_card(folder: Path) -> None:
    """Say in a bundle's card that its figures are from before it joined an ensemble."""
    text = (folder / CARD).read_text(encoding="utf-8")
    write_text(folder / CARD, text.replace(_METRICS_TITLE, _METRICS_TITLE + _MEMBER, 1))


def save_ensemble_card(folder: Path, metrics: Mapping[str, Any]) -> None:
    """Write the card of a folder of bundles, with the metrics of their out-of-fold cases."""
    members = sorted(path.parent.name for path in folder.glob("*/config.yaml"))
    text = _render(
        _ENSEMBLE,
        members=members,
        rows=_rows(metrics),
        n_cases=metrics["n_cases"],
        tolerance_mm=metrics["whole_pancreas"]["nsd_tolerance_mm"],
    )
    write_text(folder / CARD, text)


def _render(template: str, **facts: Any) -> str:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # Markdown
    )
    return environment.get_template(template).render(version=version("pancreas-mtl"), **facts)


def _cells(facts: Mapping[str, Any]) -> dict[str, str]:
    """Facts from elsewhere as text that cannot break a table."""
    return {key: " ".join(str(value).split()).replace("|", "/") for key, value in facts.items()}


def _rows(metrics: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Name, mean and interval of every metric that is defined."""
    rows = []
    for name, (region, key) in _METRICS:
        estimate = (metrics.get(region) or {}).get(key) or {}
        if estimate.get("mean") is not None:
            rows.append((name, f"{estimate['mean']:.3f}", _interval(estimate.get("ci95"))))
    return rows


def _interval(ci95: Any) -> str:
    return "none, a single case" if not ci95 else f"{ci95[0]:.3f} to {ci95[1]:.3f}"
