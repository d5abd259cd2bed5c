"""Which cases train and which validate: five folds stratified by subtype; the official split."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from pancreas_mtl.data.files import write_text
from pancreas_mtl.errors import UsageError
from pancreas_mtl.types import Case

FOLDS = 5
OFFICIAL = "official"


@dataclass(frozen=True)
class Split:
    """Names of the cases on either side."""

    train: tuple[str, ...]
    validation: tuple[str, ...]


@dataclass(frozen=True)
class Splits:
    """All folds, and the layout's own division where it has one."""

    folds: tuple[Split, ...]
    official: Split | None = None

    def choose(self, fold: int | str) -> Split:
        """The split that `fold` names: a number, or "official".

        Raises:
            UsageError: there is no such fold.
        """
        if fold == OFFICIAL:
            if self.official is None:
                raise UsageError(
                    "fold=official: this dataset has no split of its own; "
                    f"choose a fold from 0 to {len(self.folds) - 1}"
                )
            return self.official
        if not isinstance(fold, int) or not 0 <= fold < len(self.folds):
            raise UsageError(f"fold={fold}: choose one of 0 to {len(self.folds) - 1}, or official")
        return self.folds[fold]


def make_splits(
    cases: Sequence[Case], official_folds: Sequence[tuple[list[str], list[str]]] | None = None
) -> Splits:
    """Divide the training cases into folds; the same cases always give the same folds.

    Cases of a layout's validation part are in no fold: they stay untouched unless fold=official is
    asked for. Cases without mask and subtype teach nothing and are left out, unless
    `official_folds` name them.

    Args:
        cases: of the whole dataset.
        official_folds: pairs of names, such as nnU-Net's `splits_final.json`; used as they are.

    Raises:
        UsageError: fewer usable training cases than folds.
    """
    useful = [c for c in cases if c.mask is not None or c.subtype is not None]
    train = [c for c in useful if c.split == "train"]
    held_out = tuple(c.name for c in useful if c.split == "validation")
    official = Split(tuple(c.name for c in train), held_out) if held_out else None
    if official_folds:
        folds = tuple(Split(tuple(left), tuple(right)) for left, right in official_folds)
    elif len(train) < FOLDS:
        raise UsageError(
            f"{len(train)} labelled training cases: {FOLDS} folds need at least {FOLDS}"
        )
    else:
        folds = stratified_folds(train)
    return Splits(folds, official)


def stratified_folds(cases: Sequence[Case]) -> tuple[Split, ...]:
    """FOLDS disjoint validation parts with the subtypes' shares of the whole."""
    rng = np.random.default_rng(0)
    fold_of: dict[str, int] = {}
    offset = 0
    for subtype in sorted({c.subtype for c in cases}, key=str):
        members = sorted(c.name for c in cases if c.subtype == subtype)
        for position, index in enumerate(rng.permutation(len(members))):
            fold_of[members[index]] = (position + offset) % FOLDS
        offset += len(members)  # so that remainders do not all fall into the first folds
    names = sorted(fold_of)
    return tuple(
        Split(
            tuple(name for name in names if fold_of[name] != fold),
            tuple(name for name in names if fold_of[name] == fold),
        )
        for fold in range(FOLDS)
    )


def save_splits(splits: Splits, path: Path) -> None:
    """Write `splits.json` once; an existing file that says the same is left alone.

    Raises:
        UsageError: the file says something else: the dataset has changed since.
    """
    text = json.dumps({"schema": 1, **asdict(splits)}, indent=1) + "\n"
    if path.exists() and path.read_text(encoding="utf-8") == text:
        return
    if path.exists():
        raise UsageError(
            f"{path}: the cases have changed since these splits were made; give another output_dir"
        )
    write_text(path, text)
