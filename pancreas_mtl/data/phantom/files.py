"""The files of a phantom dataset, in the layouts that the readers know.

Every case follows from the seed and its index alone. Each part counts from an index of its own, so
the test cases of a seed stay the same whatever the number of training cases.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from pancreas_mtl.data.files import write_text
from pancreas_mtl.data.images import write_volume
from pancreas_mtl.data.phantom.case import make_phantom
from pancreas_mtl.data.phantom.statistics import Difficulty, Size, subtype_of
from pancreas_mtl.types import Label, LabelArray, SourceGrid, Split, TripleMm

Layout = Literal["quiz", "nnunet"]

FORMAT = 4  # raised whenever the same numbers give other files
FIRST_INDEX: dict[Split, int] = {"train": 0, "validation": 10_000, "test": 20_000}
MAX_CASES = 10_000  # of one part
NNUNET_FOLDER = "Dataset900_PancreasPhantom"
REFERENCES = "references"  # masks and subtypes of the test cases, which no layout reads
ARTEFACT = np.float32(1.0000152587890625)  # how most masks of the quiz hold a 1
ARTEFACT_SHARE = 0.75
ORIGIN_MM = 300.0  # largest coordinate of a scan's first voxel


@dataclass(frozen=True)
class PhantomPlan:
    """All that decides the content of a phantom dataset."""

    seed: int
    num_train: int
    num_validation: int
    num_test: int
    layout: Layout = "quiz"
    difficulty: Difficulty = "easy"
    size: Size = "full"
    format: int = FORMAT


@dataclass(frozen=True)
class Item:
    """One case and where its files go."""

    index: int
    subtype: int
    split: Split
    image: Path
    mask: Path


def list_items(plan: PhantomPlan, root: Path) -> Iterator[Item]:
    """The cases of a dataset; no file is touched."""
    parts: tuple[tuple[Split, int], ...] = (
        ("train", plan.num_train),
        ("validation", plan.num_validation),
        ("test", plan.num_test),
    )
    for split, count in parts:
        for index in range(FIRST_INDEX[split], FIRST_INDEX[split] + count):
            subtype = subtype_of(plan.seed, index)
            images, masks = _folders(plan.layout, split, subtype)
            name = f"quiz_{index:05d}" if split == "test" else f"quiz_{subtype}_{index:05d}"
            image = root / images / f"{name}_0000.nii.gz"
            yield Item(index, subtype, split, image, root / masks / f"{name}.nii.gz")


def list_tables(plan: PhantomPlan, root: Path) -> list[Path]:
    """The files beside the cases that a dataset may have."""
    names = ("subtypes.csv", "dataset.json", "splits_final.json")
    return [root / REFERENCES / "subtypes.csv", *(root / NNUNET_FOLDER / name for name in names)]


def write_case(item: Item, *, plan: PhantomPlan) -> None:
    """Draw one case and write its image and mask; the image comes last.

    Masks of the layout `quiz` are float32, most of them with the artefact of real ones.

    Raises:
        CaseError: the disk is full, or the folder cannot be written to.
    """
    case = make_phantom(plan.seed, item.index, difficulty=plan.difficulty, size=plan.size)
    rng = np.random.default_rng([plan.seed, item.index, 1])
    origin_mm = rng.uniform(-ORIGIN_MM, ORIGIN_MM, 3).round(1)
    as_float = plan.layout == "quiz" and item.split != "test"
    artefact = rng.random() < ARTEFACT_SHARE
    mask = _as_stored(case.labels, artefact=artefact) if as_float else case.labels
    for path, array in ((item.mask, mask), (item.image, case.image_hu)):
        write_volume(path, array, _grid(array, case.spacing_mm, origin_mm))


def write_tables(plan: PhantomPlan, items: Sequence[Item], root: Path) -> None:
    """Write what the layout needs beside the cases, and the subtypes of the test cases."""
    held_out = [item for item in items if item.split == "test"]
    if held_out:
        _write_subtypes(root / REFERENCES / "subtypes.csv", held_out)
    if plan.layout == "nnunet":
        labelled = [item for item in items if item.split != "test"]
        _write_nnunet_tables(labelled, root / NNUNET_FOLDER)


def _folders(layout: Layout, split: Split, subtype: int) -> tuple[str, str]:
    """Folders of images and masks, relative to the dataset's root."""
    if layout == "quiz":
        folder = "test" if split == "test" else f"{split}/subtype{subtype}"
        images, masks = folder, folder
    else:
        part = "Ts" if split == "test" else "Tr"
        images, masks = (f"{NNUNET_FOLDER}/{kind}{part}" for kind in ("images", "labels"))
    return images, REFERENCES if split == "test" else masks


def _as_stored(labels: LabelArray, *, artefact: bool) -> npt.NDArray[np.float32]:
    values = labels.astype(np.float32)
    if artefact:
        values[labels == Label.PANCREAS] = ARTEFACT
    return values


def _grid(
    array: npt.NDArray[Any], spacing_mm: TripleMm, origin_mm: npt.NDArray[np.float64]
) -> SourceGrid:
    """The grid of a file stored as LPS."""
    d, h, w = array.shape
    z, y, x = spacing_mm
    affine = np.diag([-x, -y, z, 1.0])
    affine[:3, 3] = origin_mm
    return SourceGrid((w, h, d), affine)


def _write_subtypes(path: Path, items: Sequence[Item]) -> None:
    rows = [f"{item.mask.name},{item.subtype}" for item in items]
    write_text(path, "\n".join(["Names,Subtype", *rows]) + "\n")


def _write_nnunet_tables(labelled: Sequence[Item], folder: Path) -> None:
    _write_subtypes(folder / "subtypes.csv", labelled)
    facts = {
        "channel_names": {"0": "CT"},
        "labels": {label.name.lower(): label.value for label in Label},
        "numTraining": len(labelled),
        "file_ending": ".nii.gz",
    }
    write_text(folder / "dataset.json", json.dumps(facts, indent=2) + "\n")
    train, val = (
        [item.mask.name.removesuffix(".nii.gz") for item in labelled if item.split == split]
        for split in ("train", "validation")
    )
    if train and val:
        fold = {"train": train, "val": val}
        write_text(folder / "splits_final.json", json.dumps([fold], indent=2) + "\n")
