"""What stands behind a run's numbers, in a sentence or two: which data, which split, how many."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from pancreas_mtl.data.phantom.dataset import MANIFEST
from pancreas_mtl.evaluation.report.runs import Run

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
        split = split_of(run)
        cases = f"{count} {split} case{'s' if count > 1 else ''}".replace("  ", " ")
        how = "scored against references" if run.has_scores else "predicted, without references"
        yield f"{cases}, {how}."
        if split == "validation" and run.has_scores and run.curves:
            yield "These cases also chose the checkpoint: new cases will score a little lower."
        if images:
            yield _source(images[0])
    if run.curves:
        epochs = {epoch for points in run.curves.values() for epoch, _ in points}
        yield f"Trained for {len(epochs)} epochs."


def split_of(run: Run) -> str:
    """The split that all cases belong to, by where their files are; empty if that does not say."""
    found = set()
    for case in run.cases:
        if case.files.prediction and case.files.prediction.parent == run.folder / "validation":
            found.add("validation")  # of the cases that a training held out
        elif case.files.image:
            parts = reversed(case.files.image.parts[:-1])
            found.add(next((SPLITS[part] for part in parts if part in SPLITS), ""))
    return found.pop() if len(found) == 1 else ""


def _source(image: Path) -> str:
    """The dataset of an image: a phantom says so in its manifest."""
    for folder in list(image.parents)[:4]:
        if (folder / MANIFEST).is_file():
            plan = json.loads((folder / MANIFEST).read_text())
            made = ", ".join(str(plan[key]) for key in ("difficulty", "size") if key in plan)
            return f"Phantom data ({made}): made-up CTs, which say nothing about patients."
    return f"CTs from {image.parent}."
