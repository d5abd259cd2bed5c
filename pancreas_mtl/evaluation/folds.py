"""The runs of a cross-validation: found, and refused where they would not be out of fold."""

from __future__ import annotations

import json
import logging
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from pancreas_mtl.data.cases import dataset_of, read_cases
from pancreas_mtl.data.files import read_yaml
from pancreas_mtl.data.splits import OFFICIAL
from pancreas_mtl.errors import UsageError
from pancreas_mtl.evaluation.references import Reference
from pancreas_mtl.inference.record import RECORD

log = logging.getLogger(__name__)

OOF = "oof"
FREE = ("fold", "output_dir", "paths", "logger", "hydra", "workers", "resume", "overwrite")
"""Sections in which the runs of one cross-validation may differ without a word."""


def find_runs(paths: Iterable[Path]) -> dict[str, Path]:
    """The training folders among `paths` and directly below them, in order, by short names.

    Raises:
        UsageError: there is none, or one that is not finished.
    """
    found = []
    for path in paths:
        here = [path, *sorted(path.iterdir())] if path.is_dir() else []
        runs = [one for one in here if (one / "splits.json").exists()]
        if not runs:
            raise UsageError(f"runs={path}: no training run in it; give the output_dir of train.py")
        found += runs
    for run in found:
        if not (run / OOF / RECORD).exists():
            raise UsageError(f"runs: {run} is not finished: repeat its command with resume=true")
    unique = len({run.name for run in found}) == len(found)
    return {run.name if unique else f"{n}-{run.name}": run for n, run in enumerate(found)}


def check_runs(runs: Mapping[str, Path], *, partial: bool) -> None:
    """What would make their figures those of something else than a cross-validation.

    A warning names the sections of their configurations that differ.

    Args:
        runs: by their short names.
        partial: whether cases that no run held out are left out.

    Raises:
        UsageError: runs that divide the cases differently, a case that two of them held out, one
            that none held out unless `partial`, or a run that may know what it held out.
    """
    for short, run in runs.items():
        if known := _record(run / "run.json").get("data", {}).get("held_out_known_to"):
            raise UsageError(
                f"runs: the weights of {short} may know what it held out ({known[0]}), so its "
                "figures are not out of fold; leave it out"
            )
    splits = {short: _record(run / "splits.json") for short, run in runs.items()}
    first, *others = runs
    for other in others:
        if splits[other] != splits[first]:
            raise UsageError(
                f"runs: {first} and {other} divide the cases differently, so the dataset has "
                "changed between them; train them anew"
            )
    held_out = _owners(runs)
    configs = {short: _config(run) for short, run in runs.items()}
    if not partial:
        folds = {str(config.get("fold")) for config in configs.values()}
        _refuse_missing_cases(held_out, splits[first], folds)
    for other in others:
        ours, theirs = configs[first], configs[other]
        if changed := [k for k in ours if k not in FREE and ours[k] != theirs.get(k)]:
            log.warning("runs: %s and %s differ in %s", first, other, ", ".join(changed))


def _owners(runs: Mapping[str, Path]) -> dict[str, str]:
    """The run that held out each case, those that failed among them; refuses a case of two."""
    owner: dict[str, str] = {}
    for short, run in runs.items():
        document = _record(run / OOF / RECORD)
        for name in sorted(raw["name"] for raw in (*document["failures"], *document["cases"])):
            if (first := owner.setdefault(name, short)) != short:
                raise UsageError(
                    f"runs: {first} and {short} both held out {name}; list the runs of one "
                    "seed and one setting: runs=[A,B,...]"
                )
    return owner


def _refuse_missing_cases(
    held_out: Collection[str], splits: Mapping[str, Any], folds: Collection[str]
) -> None:
    numbered = {n: set(split["validation"]) for n, split in enumerate(splits["folds"])}
    expected = set().union(*numbered.values()) if folds != {OFFICIAL} else set()
    if missing := expected.difference(held_out):
        where = ", ".join(str(n) for n, names in numbered.items() if names & missing)
        raise UsageError(
            f"runs: {len(missing)} of {len(expected)} cases were held out by none of them "
            f"(fold {where}): add these folds, or leave the cases out by missing=skip"
        )


def read_run_references(runs: Iterable[Path]) -> list[Reference]:
    """All cases of the dataset on which the runs were trained.

    Raises:
        UsageError: the runs were trained on different datasets.
    """
    sections = [_config(run)["data"] for run in runs]
    data = {dataset_of(section["layout"], section["root"]) for section in sections}
    if len(data) > 1:
        roots = ", ".join(sorted(str(root) for _, root in data))
        raise UsageError(f"runs: trained on different datasets ({roots}): give those of one")
    ((layout, root),) = data
    return [Reference(case.name, case.mask, case.subtype) for case in read_cases(layout, root)]


def _config(run: Path) -> Mapping[str, Any]:
    config = read_yaml(run / "config.yaml")
    section = config.get("data")
    if not isinstance(section, dict) or not {"layout", "root"} <= section.keys():
        raise UsageError(f"{run / 'config.yaml'}: names no dataset; restore it, or train again")
    return config


def _record(path: Path) -> dict[str, Any]:
    """A JSON file of a run; nothing where it is missing, as `run.json` of a copied run may be."""
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else {}
