"""Trials: one configuration, one seed; trained, predicted and evaluated by the commands themselves.

Each trial has a folder of its own, named by its configuration and seed:

    <output_dir>/data/  cache/
    <output_dir>/trials/<configuration>/seed<S>/{run,predictions,evaluation,trial.json,log.txt}

This file says what the commands of a trial are; `trial_runs.py` runs them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pancreas_mtl.errors import UsageError

OUTPUT = "output_dir"
PLACEHOLDER = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True)
class Trial:
    """One configuration with one seed; `overrides` are what `train.py` is given.

    In them `{NAME}` stands for the bundle of another configuration with the same seed, from which
    a second stage starts, and `{output_dir}` for the folder of all trials. An ensemble trains
    nothing: it averages the `members`, configurations of the same seed; if these are `folds`, it is
    calibrated by what each says of the cases that it had not seen.
    """

    configuration: str
    seed: int
    overrides: tuple[str, ...]
    members: tuple[str, ...] = ()
    folds: bool = False

    @property
    def name(self) -> str:
        """As in messages."""
        return f"{self.configuration}/seed{self.seed}"

    @property
    def needs(self) -> set[str]:
        """The configurations that have to be trained before."""
        named = {name for override in self.overrides for name in PLACEHOLDER.findall(override)}
        return {*self.members, *named} - {OUTPUT}


@dataclass(frozen=True)
class Laboratory:
    """The folder of all trials, and the threads that each may use."""

    output_dir: Path
    threads: int = 1

    def folder(self, trial: Trial) -> Path:
        """Where a trial lies."""
        return self.output_dir / "trials" / trial.name


@dataclass(frozen=True)
class Step:
    """One command, done when its product exists and tells of no case that failed."""

    name: str
    arguments: tuple[str, ...]
    product: Path

    @property
    def is_done(self) -> bool:
        """Whether nothing is left to do."""
        if self.name != "predict" or not self.product.exists():
            return self.product.exists()
        return not json.loads(self.product.read_text(encoding="utf-8"))["failures"]


def list_trials(
    configurations: Mapping[str, Sequence[str | Sequence[str]]],
    seeds: Sequence[int],
    shared: Sequence[str],
    *,
    ensembles: Mapping[str, Sequence[str]] | None = None,
    folds: Mapping[str, Sequence[str]] | None = None,
    only: Sequence[str] | None = None,
) -> list[Trial]:
    """Every configuration with every seed, seed by seed, so that a partial table is fair.

    What needs others comes after them.

    Args:
        configurations: overrides by name; a list among them is spliced in.
        seeds: of the trainings.
        shared: overrides that come first in all configurations.
        ensembles: names of their members by name.
        folds: the same, of ensembles whose members are folds.
        only: the names that are wanted, with what they need; None for all.

    Raises:
        UsageError: a name in `only` that does not exist, or no seed.
    """
    ensembles, folds = ensembles or {}, folds or {}
    names = [*configurations, *ensembles, *folds]
    if not seeds:
        raise UsageError("seeds=[]: give at least one")
    trained = [
        Trial(name, seed, (*shared, *_spliced(overrides)))
        for seed in seeds
        for name, overrides in configurations.items()
    ]
    averaged = [
        Trial(name, seed, (), tuple(members), folds=group is folds)
        for seed in seeds
        for group in (ensembles, folds)
        for name, members in group.items()
    ]
    everything = [*trained, *averaged]
    for name in {*(only or ())}.union(*(trial.needs for trial in everything)):
        if name not in names:
            raise UsageError(f"no configuration {name}: choose from {', '.join(names)}")
    wanted = set(names) if only is None else _with_needs(only, everything)
    return [trial for trial in everything if trial.configuration in wanted]


def _spliced(overrides: Iterable[str | Sequence[str]]) -> Iterable[str]:
    for override in overrides:
        yield from [override] if isinstance(override, str) else override


def _with_needs(names: Iterable[str], trials: Sequence[Trial]) -> set[str]:
    """The configurations of these names, what they need, what that needs, and so on."""
    found, new = set[str](), set(names)
    while new:
        found |= new
        new = {need for t in trials if t.configuration in new for need in t.needs} - found
    return found


def steps(trial: Trial, laboratory: Laboratory) -> list[Step]:
    """The commands of a trial, in order, as one would type them."""
    data, folder = laboratory.output_dir / "data", laboratory.folder(trial)
    predictions, evaluation = folder / "predictions", folder / "evaluation"
    before, models = _models(trial, laboratory)
    predict = (
        "predict.py",
        f"model=[{','.join(map(str, models))}]",
        f"input={data / 'test'}",
        f"output_dir={predictions}",
        *(["overwrite=true"] if (predictions / "run.json").exists() else []),  # cases failed
    )
    evaluate = (
        "-m",
        "pancreas_mtl.evaluate",
        f"predictions={predictions}",
        f"references={data / 'references'}",
        f"output_dir={evaluation}",
        f"workers={laboratory.threads}",
    )
    return [
        *before,
        Step("predict", predict, predictions / "run.json"),
        Step("evaluate", evaluate, evaluation / "metrics.json"),
    ]


def _models(trial: Trial, laboratory: Laboratory) -> tuple[list[Step], list[Path]]:
    """The bundles that predict, and what makes them."""
    folder = laboratory.folder(trial)
    bundles = [bundle_of(name, folder) for name in trial.members or (trial.configuration,)]
    if trial.folds:
        return [_cross_validation(trial, laboratory)], [folder / "cross_validation" / "ensemble"]
    return [] if trial.members else [_training(trial, laboratory)], bundles


def _training(trial: Trial, laboratory: Laboratory) -> Step:
    """The training, its placeholders filled in."""
    home, folder = laboratory.output_dir, laboratory.folder(trial)

    def meant(match: re.Match[str]) -> str:
        return str(home if match[1] == OUTPUT else bundle_of(match[1], folder))

    overrides = [PLACEHOLDER.sub(meant, override) for override in trial.overrides]
    has_data = any(override.startswith("data=") for override in overrides)
    arguments = (
        "train.py",
        *([] if has_data else ["data=quiz", f"data.root={home / 'data'}"]),
        f"paths.cache={home / 'cache'}",
        "audit=false",
        *overrides,
        f"seed={trial.seed}",
        f"output_dir={folder / 'run'}",
        "resume=true",
    )
    return Step("train", arguments, folder / "run" / "report.html")


def _cross_validation(trial: Trial, laboratory: Laboratory) -> Step:
    """The out-of-fold cases of all members, and the ensemble that they calibrate."""
    folder = laboratory.folder(trial)
    runs = ",".join(str(bundle_of(name, folder).parent) for name in trial.members)
    arguments = (
        "-m",
        "pancreas_mtl.evaluate",
        f"runs=[{runs}]",
        f"output_dir={folder / 'cross_validation'}",
        f"workers={laboratory.threads}",
    )
    return Step("cross-validate", arguments, folder / "cross_validation" / "metrics.json")


def bundle_of(configuration: str, folder: Path) -> Path:
    """The bundle of another configuration, of the same seed as the trial in `folder`."""
    return folder.parents[1] / configuration / folder.name / "run" / "bundle"
