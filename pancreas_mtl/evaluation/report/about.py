"""What stands behind a run's numbers, in a sentence or two: which data, which split, how many."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from pancreas_mtl.data.files import read_csv
from pancreas_mtl.data.phantom.dataset import MANIFEST
from pancreas_mtl.evaluation.report.runs import Run, read_config

VALIDATION, OUT_OF_FOLD = "validation", "out-of-fold"
SPLITS = {
    "train": "training",
    "imagesTr": "training",
    "validation": "validation",
    "test": "test",
    "imagesTs": "test",
}


def describe(run: Run) -> str:
    """The data, the split and the number of cases, as far as the run's files tell."""
    return " ".join(_sentences(run))


def _sentences(run: Run) -> Iterator[str]:
    count = len(run.cases)
    images = [case.files.image for case in run.cases if case.files.image]
    if count:
        split, folds = split_of(run), folds_of(run)
        cases = f"{count} {split} case{'s' if count > 1 else ''}".replace("  ", " ")
        if folds:
            cases += f" ({', '.join(folds)})"
        how = "scored against references" if run.has_scores else "predicted, without references"
        yield f"{cases}, {how}."
        if split in (VALIDATION, OUT_OF_FOLD) and run.has_scores and (folds or run.curves):
            chose = "chose the checkpoints" if len(folds) > 1 else "chose the checkpoint"
            yield f"These cases also {chose}: new cases will score a little lower."
        if images:
            yield _source(images[0])
    if run.curves:
        epochs = {epoch for points in run.curves.values() for epoch, _ in points}
        yield f"Trained for {len(epochs)} epochs."


def split_of(run: Run) -> str:
    """The split that all cases belong to, by where their files are; empty if that does not say.

    What a training held out is no training case, though its image lies among them.
    """
    found = {_held_out(folder) for folder in _prediction_folders(run)}
    if not found or "" in found:
        images = (case.files.image for case in run.cases if case.files.image)
        found = {_part_of(image) for image in images}
    return found.pop() if len(found) == 1 else ""


def folds_of(run: Run) -> list[str]:
    """The names of the folds of held-out cases: `fold=0`, or the runs that were joined."""
    names: set[str] = set()
    for folder in _prediction_folders(run):
        kind = _held_out(folder)
        if kind == OUT_OF_FOLD:
            names |= {row["Run"] for _, row in read_csv(_fold_table(folder))[1]}
        elif kind and "fold" in (config := read_config(folder.parent)):
            names.add(f"fold={config['fold']}")
    return sorted(names)


def _prediction_folders(run: Run) -> set[Path]:
    return {case.files.prediction.parent for case in run.cases if case.files.prediction}


def _held_out(folder: Path) -> str:
    """What the predictions in a folder are, if a training or a cross-validation left them there."""
    if _fold_table(folder).is_file():
        return OUT_OF_FOLD if folder.name in ("oof", "calibrated") else ""
    return VALIDATION if folder.name in ("oof", "validation") else ""


def _fold_table(folder: Path) -> Path:
    """Where a cross-validation notes which run predicted which case."""
    return folder.parent / "oof" / "folds.csv"


def _part_of(image: Path) -> str:
    parts = reversed(image.parts[:-1])
    return next((SPLITS[part] for part in parts if part in SPLITS), "")


def _source(image: Path) -> str:
    """The dataset of an image: a phantom says so in its manifest."""
    for folder in list(image.parents)[:4]:
        if (folder / MANIFEST).is_file():
            plan = json.loads((folder / MANIFEST).read_text())
            made = ", ".join(str(plan[key]) for key in ("difficulty", "size") if key in plan)
            return f"Phantom data ({made}): made-up CTs, which say nothing about patients."
    return f"CTs from {image.parent}."
