"""A whole phantom dataset on disk, in one of the layouts that the readers know.

Each case follows from the seed and its index alone, and is written to a temporary name and
renamed; so whatever exists is complete, and an interrupted run goes on where it stopped.
"""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import nibabel as nib
import numpy as np
import numpy.typing as npt

from pancreas_mtl.data.phantom.case import make_phantom
from pancreas_mtl.data.phantom.statistics import Difficulty, Size, subtype_of
from pancreas_mtl.data.pool import map_in_processes
from pancreas_mtl.errors import UsageError
from pancreas_mtl.types import Split, TripleMm

Layout = Literal["quiz", "nnunet"]

FORMAT = 1  # raised whenever the same seed gives other files
MANIFEST = "phantom.json"
FIRST_INDEX: dict[Split, int] = {"train": 0, "validation": 10_000, "test": 20_000}
MAX_CASES = 10_000  # of one part
SHARES: dict[Split, float] = {"validation": 0.1, "test": 0.2}  # of num_cases; the rest trains
NNUNET_FOLDER = "Dataset900_PancreasPhantom"
ARTEFACT = np.float32(1.0000152587890625)  # how most real masks store a 1
ARTEFACT_SHARE = 0.75


@dataclass(frozen=True)
class PhantomPlan:
    """All that decides the content of a dataset."""

    seed: int
    num_train: int
    num_validation: int
    num_test: int
    layout: Layout = "quiz"
    difficulty: Difficulty = "easy"
    size: Size = "full"
    format: int = FORMAT


@dataclass(frozen=True)
class _Item:
    """One case and where its files go."""

    index: int
    subtype: int
    image: Path
    mask: Path
    split: Split


def write_dataset(
    output_dir: Path,
    *,
    num_cases: int | None = None,
    num_train: int | None = None,
    num_validation: int | None = None,
    num_test: int | None = None,
    seed: int = 0,
    layout: Layout = "quiz",
    difficulty: Difficulty = "easy",
    size: Size = "full",
    workers: int = 1,
    overwrite: bool = False,
) -> PhantomPlan:
    """Write a phantom dataset; what is there already is kept.

    The masks of the test cases and their `subtypes.csv` go to `references/`.

    Args:
        output_dir: new, empty, or with the same dataset, complete or not.
        num_cases: shared out as 70 % training, 10 % validation, 20 % test.
        num_train: training cases, instead of their share of `num_cases`; the same for
            `num_validation` and `num_test`. The cases of a part do not depend on the other parts.
        num_validation: see `num_train`.
        num_test: see `num_train`.
        seed: of all cases.
        layout: `quiz` or `nnunet`.
        difficulty: `easy` or `hard`.
        size: `full` or `small`.
        workers: processes.
        overwrite: replace another phantom dataset in `output_dir`.

    Raises:
        UsageError: bad counts or choices, or `output_dir` holds something else.
    """
    counts = _counts(num_cases, num_train, num_validation, num_test)
    plan = PhantomPlan(seed, *counts, layout=layout, difficulty=difficulty, size=size)
    _check(plan)
    _claim(output_dir, plan, overwrite=overwrite)
    items = list(_items(plan, output_dir))
    missing = [item for item in items if not (item.image.exists() and item.mask.exists())]
    for folder in {path.parent for item in items for path in (item.image, item.mask)}:
        folder.mkdir(parents=True, exist_ok=True)
    write = partial(_write_case, plan=plan)
    for _, result in map_in_processes(write, missing, workers=workers, label="phantom cases"):
        if isinstance(result, Exception):
            raise result
    _write_tables(plan, items, output_dir)
    return plan


def _counts(num_cases: int | None, *parts: int | None) -> tuple[int, int, int]:
    total = num_cases or 0
    validation, test = (round(SHARES[split] * total) for split in ("validation", "test"))
    shares = (total - validation - test, validation, test)
    train, validation, test = (
        share if part is None else part for part, share in zip(parts, shares, strict=True)
    )
    return train, validation, test


def _check(plan: PhantomPlan) -> None:
    for key in ("num_train", "num_validation", "num_test"):
        if not 0 <= getattr(plan, key) <= MAX_CASES:
            raise UsageError(f"{key}={getattr(plan, key)}: give a number from 0 to {MAX_CASES}")
    if plan.num_train + plan.num_validation + plan.num_test == 0:
        raise UsageError("no cases asked for: give num_cases=N, or num_train, num_test and so on")
    choices = {
        "layout": ("quiz", "nnunet"),
        "difficulty": ("easy", "hard"),
        "size": ("full", "small"),
    }
    for key, known in choices.items():
        if getattr(plan, key) not in known:
            raise UsageError(f"{key}={getattr(plan, key)}: choose one of {', '.join(known)}")
    if plan.seed < 0:
        raise UsageError(f"seed={plan.seed}: give a number from 0")


def _claim(output_dir: Path, plan: PhantomPlan, *, overwrite: bool) -> None:
    """Leave in `output_dir` the manifest of this plan, and no files of another."""
    manifest = output_dir / MANIFEST
    wanted = asdict(plan)
    if manifest.exists():
        found = json.loads(manifest.read_text())
        if found == wanted:
            return
        if not overwrite:
            differing = [key for key in wanted if found.get(key) != wanted[key]]
            raise UsageError(
                f"{output_dir} holds another phantom dataset ({differing[0]}="
                f"{found.get(differing[0])}): give another output_dir, or overwrite=true"
            )
        for item in _items(PhantomPlan(**found), output_dir):
            item.image.unlink(missing_ok=True)
            item.mask.unlink(missing_ok=True)
    elif output_dir.is_dir() and any(output_dir.iterdir()):
        raise UsageError(f"{output_dir} is not empty and holds no phantom dataset: give another")
    output_dir.mkdir(parents=True, exist_ok=True)
    _write_text(manifest, json.dumps(wanted, indent=2) + "\n")


def _items(plan: PhantomPlan, root: Path) -> Iterator[_Item]:
    counts: dict[Split, int] = {
        "train": plan.num_train,
        "validation": plan.num_validation,
        "test": plan.num_test,
    }
    for split, count in counts.items():
        for index in range(FIRST_INDEX[split], FIRST_INDEX[split] + count):
            subtype = subtype_of(plan.seed, index)
            labelled = f"quiz_{subtype}_{index:05d}"
            name = f"quiz_{index:05d}" if split == "test" else labelled
            if plan.layout == "quiz":
                images = root / split / ("" if split == "test" else f"subtype{subtype}")
                masks = images
            else:
                part = "Ts" if split == "test" else "Tr"
                images, masks = (root / NNUNET_FOLDER / f"{kind}{part}" for kind in _KINDS)
            masks = root / "references" if split == "test" else masks
            yield _Item(
                index, subtype, images / f"{name}_0000.nii.gz", masks / f"{name}.nii.gz", split
            )


_KINDS = ("images", "labels")


def _write_case(item: _Item, *, plan: PhantomPlan) -> None:
    case = make_phantom(plan.seed, item.index, difficulty=plan.difficulty, size=plan.size)
    mask = case.labels
    if plan.layout == "quiz" and item.split != "test":
        rng = np.random.default_rng([plan.seed, item.index, 1])
        stored = mask.astype(np.float32)
        if rng.random() < ARTEFACT_SHARE:
            stored[mask == 1] = ARTEFACT
        _write_nifti(item.mask, stored, case.spacing_mm)
    else:
        _write_nifti(item.mask, mask, case.spacing_mm)
    _write_nifti(item.image, case.image_hu, case.spacing_mm)


def _write_nifti(path: Path, array: npt.NDArray[Any], spacing_mm: TripleMm) -> None:
    """Store `(D, H, W)` as LPS, compressed without a time stamp."""
    z, y, x = spacing_mm
    image = nib.Nifti1Image(array.transpose(2, 1, 0), np.diag([-x, -y, z, 1.0]))
    image.header.set_xyzt_units("mm")
    image.set_qform(image.affine, code=1)
    image.set_sform(image.affine, code=1)
    _write_bytes(path, gzip.compress(image.to_bytes(), compresslevel=1, mtime=0))


def _write_tables(plan: PhantomPlan, items: list[_Item], root: Path) -> None:
    test = [item for item in items if item.split == "test"]
    labelled = [item for item in items if item.split != "test"]
    if test:
        _write_subtypes(root / "references" / "subtypes.csv", test)
    if plan.layout == "quiz":
        return
    folder = root / NNUNET_FOLDER
    _write_subtypes(folder / "subtypes.csv", labelled)
    dataset = {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, "pancreas": 1, "lesion": 2},
        "numTraining": len(labelled),
        "file_ending": ".nii.gz",
    }
    _write_text(folder / "dataset.json", json.dumps(dataset, indent=2) + "\n")
    if plan.num_validation:
        train, val = (
            [item.mask.name.removesuffix(".nii.gz") for item in labelled if item.split == split]
            for split in ("train", "validation")
        )
        splits = [{"train": train, "val": val}]
        _write_text(folder / "splits_final.json", json.dumps(splits, indent=2) + "\n")


def _write_subtypes(path: Path, items: list[_Item]) -> None:
    lines = ["Names,Subtype", *(f"{item.mask.name},{item.subtype}" for item in items)]
    _write_text(path, "\n".join(lines) + "\n")


def _write_text(path: Path, text: str) -> None:
    _write_bytes(path, text.encode())


def _write_bytes(path: Path, content: bytes) -> None:
    """Write to a temporary name beside `path` and rename: the file is whole or absent."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    temporary.write_bytes(content)
    temporary.replace(path)
