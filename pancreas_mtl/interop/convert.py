"""A dataset of one layout written in another: voxels, subtypes and official split are kept.

Images are copied byte for byte (or linked; an unpacked one is packed). Masks are written as uint8
labels with the geometry of their image, as nnU-Net wants them.
"""

from __future__ import annotations

import csv
import gzip
import json
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from pancreas_mtl.data.cases import EXPECTED, fits, read_cases, read_official_folds
from pancreas_mtl.data.files import atomic_path, link_or_copy, reason
from pancreas_mtl.data.images import list_files, read_grid, read_mask, write_mask
from pancreas_mtl.data.names import to_cell
from pancreas_mtl.data.pool import map_in_processes
from pancreas_mtl.errors import CaseError, UsageError
from pancreas_mtl.types import Case, Label

TARGETS = ("quiz", "nnunet")
_SPLITS = "splits_final.json"
_ENTRIES = (  # all that a dataset of the two layouts may hold at its top
    *("train", "validation", "test"),
    *("imagesTr", "labelsTr", "imagesTs", "dataset.json", "subtypes.csv", _SPLITS),
)


@dataclass(frozen=True)
class Conversion:
    """What became of a dataset."""

    written: list[Case]  # with the paths of the source
    left_out: dict[str, str]  # name and reason
    notes: list[str]  # what the new layout cannot hold


def convert_dataset(
    root: Path,
    output_dir: Path,
    *,
    source: str,
    target: str,
    link: bool = False,
    workers: int = 1,
    overwrite: bool = False,
) -> Conversion:
    """Write the dataset in `root` to `output_dir`; a case that fails is left out and named.

    nnU-Net's one-fold `splits_final.json` and the quiz's folders `train` and `validation` stand for
    each other. The layout `quiz` sorts by subtype, so it cannot hold a training case without one.

    Args:
        root: stays as it is.
        output_dir: new or empty, or with a dataset of a layout if `overwrite`.
        source: layout of `root`: `quiz`, `nnunet` or `msd`.
        target: another layout: `quiz` or `nnunet`.
        link: hard links instead of copies of images that are packed.
        workers: processes.
        overwrite: replace the dataset in `output_dir`; other files in it are kept.

    Raises:
        UsageError: a choice that does not exist, a root that does not fit, no case that the target
            could hold, or an `output_dir` that is not free.
        CaseError: the disk is full, or no case could be written.
    """
    _check_choices(source, target)
    if not root.is_dir():
        raise UsageError(f"root={root} is no folder: give the dataset's folder")
    _check_destination(root, output_dir, overwrite=overwrite)
    cases, notes = _official_split(read_cases(source, root), source, root)
    kept, left_out = _fitting(cases, target)
    if left_out and all(case.split == "test" for case in kept):
        raise UsageError(
            f"root={root} has no subtypes, and layout quiz sorts by them: convert to=nnunet, and "
            "write them into its subtypes.csv"
        )
    try:
        with _draft_of(output_dir.resolve()) as draft:
            failed = _write_cases(kept, draft, target=target, link=link, workers=workers)
            written = [case for case in kept if case.name not in failed]
            if not written:
                raise CaseError(f"no case could be written: {next(iter(failed.values()))}")
            if target == "nnunet":
                _write_nnunet_tables(written, draft)
            _install(draft, output_dir.resolve())
    except OSError as error:
        raise CaseError(f"{output_dir} cannot be written ({reason(error)}): free space") from None
    left_out |= failed
    return Conversion(written, left_out, notes + _notes(written, target, output_dir))


def _check_choices(source: str, target: str) -> None:
    for key, value, choices in (("from", source, tuple(EXPECTED)), ("to", target, TARGETS)):
        if value not in choices:
            raise UsageError(f"{key}={value}: choose one of {', '.join(choices)}")
    if source == target:
        raise UsageError(f"from={source} to={target}: nothing to convert; choose another layout")


def _check_destination(root: Path, output_dir: Path, *, overwrite: bool) -> None:
    here, there = root.resolve(), output_dir.resolve()
    if there.is_relative_to(here) or here.is_relative_to(there):
        raise UsageError(
            f"output_dir={output_dir} and root={root} lie in each other: give another output_dir"
        )
    if not output_dir.exists():
        return
    if not output_dir.is_dir():
        raise UsageError(f"output_dir={output_dir} is a file: give another output_dir")
    if list_files(output_dir) and not overwrite:
        raise UsageError(
            f"output_dir={output_dir} is not empty: give another output_dir, or overwrite=true"
        )
    if list_files(output_dir) and not any(fits(layout, output_dir) for layout in EXPECTED):
        raise UsageError(
            f"output_dir={output_dir} holds no dataset that overwrite=true could replace: give "
            "another output_dir"
        )


# What goes where


def _official_split(cases: list[Case], source: str, root: Path) -> tuple[list[Case], list[str]]:
    """Turn a one-fold `splits_final.json` into the cases' splits; what that changes is noted."""
    folds, path = read_official_folds(source, root) or [], root / _SPLITS
    if len(folds) > 1:
        return cases, [f"{path} has {len(folds)} folds, which layout quiz cannot hold: all train"]
    if not folds:
        return cases, []
    train, validation = map(set, folds[0])
    labelled = [c.name for c in cases if c.split != "test" and c.subtype is not None]
    notes = []
    if neither := [name for name in labelled if name not in train | validation]:
        notes.append(
            f"{path} leaves out {len(neither)} labelled cases, such as {neither[0]}, which layout "
            "quiz cannot: they train"
        )
    return [
        replace(case, split="validation") if case.name in validation else case for case in cases
    ], notes


def _fitting(cases: Sequence[Case], target: str) -> tuple[list[Case], dict[str, str]]:
    """Cases that the target can hold, and why it cannot hold the others."""
    lost = {
        case.name: f"{case.image} has no subtype, and layout quiz sorts by it: add it to "
        "subtypes.csv"
        for case in cases
        if target == "quiz" and case.split != "test" and case.subtype is None
    }
    return [case for case in cases if case.name not in lost], lost


def _folders(case: Case, target: str) -> tuple[str, str]:
    """Folders of image and mask, relative to the dataset's."""
    if target == "nnunet":
        part = "Ts" if case.split == "test" else "Tr"
        return f"images{part}", f"labels{part}"
    folder = "test" if case.split == "test" else f"{case.split}/subtype{case.subtype}"
    return folder, folder


def _notes(written: Sequence[Case], target: str, output_dir: Path) -> list[str]:
    """What a reader of the new dataset should know."""
    notes = []
    bare = [case.name for case in written if case.split != "test" and case.mask is None]
    if target == "nnunet" and bare:
        notes.append(f"{len(bare)} cases have no mask, such as {bare[0]}: nnU-Net refuses them")
    if target == "nnunet" and not re.fullmatch(r"Dataset\d{3}_\w+", output_dir.name):
        notes.append(f"nnU-Net itself wants a folder DatasetXXX_Name, not {output_dir.name}")
    tests = [case.name for case in written if case.split == "test" and case.subtype is not None]
    if target == "quiz" and tests:
        notes.append(f"{len(tests)} test cases lose their subtype, which layout quiz cannot hold")
    return notes


# Writing


@contextmanager
def _draft_of(destination: Path) -> Iterator[Path]:
    """A new folder beside the destination, gone at the end whatever happens."""
    draft = destination.with_name(f".{destination.name}.draft")
    shutil.rmtree(draft, ignore_errors=True)  # of an interrupted run
    try:
        draft.mkdir(parents=True)
        yield draft
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _write_cases(
    cases: Sequence[Case], draft: Path, *, target: str, link: bool, workers: int
) -> dict[str, str]:
    """Write images and masks; by name, why a case could not be."""
    write = partial(_write_case, draft=draft, target=target, link=link)
    failed = {}
    for case, outcome in map_in_processes(write, cases, workers=workers, label="convert"):
        if isinstance(outcome, CaseError):
            failed[case.name] = str(outcome)
        elif isinstance(outcome, Exception):
            raise outcome
    return failed


def _write_case(case: Case, *, draft: Path, target: str, link: bool) -> None:
    """Write the mask, then the image, so that an image never lacks a mask it should have."""
    images, masks = (draft / folder for folder in _folders(case, target))
    grid = read_grid(case.image)
    if case.mask is not None:
        mask = read_mask(case.mask, grid=grid)
        masks.mkdir(parents=True, exist_ok=True)
        write_mask(masks / f"{case.name}.nii.gz", mask.array, mask.source)
    images.mkdir(parents=True, exist_ok=True)
    _write_image(case.image, images / f"{case.name}_0000.nii.gz", link=link)


def _write_image(image: Path, destination: Path, *, link: bool) -> None:
    with image.open("rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
        if packed and link:
            link_or_copy(image.resolve(), destination)
            return
        with atomic_path(destination) as path:
            if packed:
                shutil.copyfile(image, path)
                return
            file.seek(0)
            with path.open("wb") as target, gzip.GzipFile("", "wb", 1, target, mtime=0) as stream:
                shutil.copyfileobj(file, stream)


def _write_nnunet_tables(cases: Sequence[Case], folder: Path) -> None:
    """Write `dataset.json`, `subtypes.csv` (an unknown one is empty) and the official split."""
    labelled = [case for case in cases if case.split != "test"]
    _write_json(
        folder / "dataset.json",
        {
            "channel_names": {"0": "CT"},
            "labels": {label.name.lower(): label.value for label in Label},
            "numTraining": len(labelled),
            "file_ending": ".nii.gz",
        },
    )
    listed = [case for case in cases if case.split != "test" or case.subtype is not None]
    with (folder / "subtypes.csv").open("w", newline="", encoding="utf-8") as file:
        rows = [(to_cell(f"{case.name}.nii.gz"), case.subtype) for case in listed]
        csv.writer(file, lineterminator="\n").writerows([("Names", "Subtype"), *rows])
    train, val = (
        [case.name for case in labelled if case.split == split] for split in ("train", "validation")
    )
    if train and val:
        _write_json(folder / _SPLITS, [{"train": train, "val": val}])


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")


def _install(draft: Path, destination: Path) -> None:
    """Move the finished dataset to its place; of what is there, only a dataset's parts go."""
    destination.mkdir(parents=True, exist_ok=True)
    for name in _ENTRIES:
        entry = destination / name
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink(missing_ok=True)
    for entry in draft.iterdir():
        os.replace(entry, destination / entry.name)
