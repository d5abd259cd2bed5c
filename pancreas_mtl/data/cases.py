"""The layouts of a dataset on disk, each read into the same list of cases.

Layouts: `quiz` (folders train, validation, test, one folder a subtype), `nnunet` (nnU-Net v2's raw
data), `msd` (Medical Segmentation Decathlon). A root that does not fit names the one that would.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from pancreas_mtl.data.files import read_csv, reason
from pancreas_mtl.data.images import find_images, list_files, listing
from pancreas_mtl.data.names import case_name, from_cell, name_problem
from pancreas_mtl.data.nifti import SUFFIXES
from pancreas_mtl.errors import UsageError
from pancreas_mtl.types import NUM_LABELS, NUM_SUBTYPES, Case, Split

log = logging.getLogger(__name__)

EXPECTED = {
    "quiz": "train/subtype{0,1,2}/quiz_<subtype>_<id>_0000.nii.gz with masks beside them",
    "nnunet": "dataset.json and imagesTr/<case>_0000.nii.gz, masks in labelsTr",
    "msd": "dataset.json with a list `training`, and imagesTr/<case>.nii.gz",
}
_LESION = re.compile("lesion|tumou?r|cancer|cyst|mass|pdac|neoplas", re.IGNORECASE)
_CHANNEL = re.compile(r"_(\d{4})\.nii(\.gz)?$", re.IGNORECASE)


def dataset_of(layout: str, root: str | Path) -> tuple[str, Path]:
    """The dataset that `data=LAYOUT data.root=ROOT` means: equal for one and the same."""
    return "quiz" if layout == "phantom" else layout, Path(os.path.realpath(root))


def read_cases(layout: str, root: Path) -> list[Case]:
    """List the cases of a dataset, sorted by name; no voxel is read.

    Args:
        layout: `quiz`, `nnunet` or `msd`; `phantom` is laid out as `quiz`.
        root: the dataset's folder.

    Raises:
        UsageError: unknown layout, a root that does not fit it, or a name that two cases share.
    """
    layout, _ = dataset_of(layout, root)
    if layout not in EXPECTED:
        raise UsageError(f"data={layout}: no such layout; choose one of {', '.join(EXPECTED)}")
    readers = {"quiz": _quiz_cases, "nnunet": _nnunet_cases, "msd": _msd_cases}
    cases: dict[str, Case] = {}
    with listing(root):
        if not fits(layout, root):
            raise UsageError(_misfit(layout, root))
        for case in readers[layout](root):
            if problem := name_problem(case.name):
                raise UsageError(f"{str(case.image)!a}: its name {problem}: rename the file")
            if case.name in cases:
                where = f"{cases[case.name].image} and {case.image}"
                raise UsageError(f"two cases are named {case.name} ({where}): rename one of them")
            cases[case.name] = case
    return [cases[name] for name in sorted(cases)]


def read_official_folds(layout: str, root: Path) -> list[tuple[list[str], list[str]]] | None:
    """Read (training, validation) names of each fold from nnU-Net's `splits_final.json`, if any.

    Raises:
        UsageError: the file is malformed, names an unknown case, or has one on both sides.
    """
    path = root / "splits_final.json"
    if layout != "nnunet" or not path.exists():
        return None
    known = {case.name for case in read_cases(layout, root) if case.split == "train"}
    folds = _json(path)
    try:
        pairs = [(list(map(str, fold["train"])), list(map(str, fold["val"]))) for fold in folds]
    except (TypeError, KeyError):
        raise UsageError(f"{path} is no list of folds with train and val: write it again") from None
    for number, (train, validation) in enumerate(pairs):
        where = f"{path}, fold {number}"
        if unknown := sorted({*train, *validation} - known):
            raise UsageError(f"{where} names {unknown[0]}, which is no training case: remove it")
        if both := sorted(set(train) & set(validation)):
            raise UsageError(f"{where} has {both[0]} on both sides: keep it on one")
        if not train or not validation:
            raise UsageError(f"{where} has an empty side: remove the fold")
    return pairs


def subtype_in_name(name: str) -> int | None:
    """The subtype that a name of the form `quiz_<subtype>_<id>` states."""
    found = re.fullmatch(r"quiz_([0-2])_\d+", name)
    return int(found[1]) if found else None


def fits(layout: str, root: Path) -> bool:
    """Whether a folder holds what marks the layout."""
    if layout == "quiz":
        folders = [root / "train" / f"subtype{s}" for s in range(NUM_SUBTYPES)]
        return any(_channels(folder) for folder in folders)
    if not (root / "dataset.json").is_file() or not (root / "imagesTr").is_dir():
        return False
    images = [path.name for path in list_files(root / "imagesTr")]
    numbered = any(_CHANNEL.search(name) for name in images)
    return numbered if layout == "nnunet" else bool(images) and not numbered


def _misfit(layout: str, root: Path) -> str:
    """Say what was expected, what was found, and what would fit."""
    if not root.is_dir():
        return f"{root} is no folder: give the dataset's folder"
    found = ", ".join(path.name for path in list_files(root)[:8]) or "nothing"
    near = [root, *(path for path in list_files(root)[:50] if path.is_dir()), *root.parents[:2]]
    hints = (
        f"; the layout {other} would fit {folder}"
        for folder in near
        for other in sorted(EXPECTED, key=lambda name: name != layout)
        if fits(other, folder)
    )
    hint = next(hints, "; no layout fits there or nearby: choose another folder")
    wanted = f"{root} does not fit the layout {layout}: expected {EXPECTED[layout]}"
    return f"{wanted}; found {found}{hint}"


# The three layouts


def _quiz_cases(root: Path) -> Iterator[Case]:
    splits: tuple[Split, ...] = ("train", "validation")
    for split in splits:
        for subtype in range(NUM_SUBTYPES):
            folder = root / split / f"subtype{subtype}"
            for case in _numbered_cases(folder, folder, split):
                yield replace(case, subtype=subtype)
    yield from _numbered_cases(root / "test", None, "test")


def _nnunet_cases(root: Path) -> Iterator[Case]:
    facts = _dataset_json(root)
    channels = facts.get("channel_names", facts.get("modality", {}))
    _check_header(root, facts, channels)
    ending = facts.get("file_ending", ".nii.gz")
    if ending not in SUFFIXES:
        raise UsageError(f"{root}/dataset.json: file_ending {ending}: convert the files to .nii.gz")
    subtypes = read_subtypes(root / "subtypes.csv")
    subtype_of = subtype_in_name if subtypes is None else subtypes.get
    cases = [
        *_numbered_cases(root / "imagesTr", root / "labelsTr", "train"),
        *_numbered_cases(root / "imagesTs", None, "test"),
    ]
    if unknown := sorted(set(subtypes or {}) - {case.name for case in cases}):
        raise UsageError(
            f"{root}/subtypes.csv names {unknown[0]}, which has no image: mend the name"
        )
    yield from (replace(case, subtype=subtype_of(case.name)) for case in cases)


def _msd_cases(root: Path) -> Iterator[Case]:
    facts = _dataset_json(root)
    _check_header(root, facts, facts.get("modality", {}))
    try:
        pairs = [(_inside(root, pair["image"]), pair["label"]) for pair in facts["training"]]
        tests = [_inside(root, image) for image in facts.get("test", [])]
    except (TypeError, KeyError):
        raise UsageError(
            f"{root}/dataset.json: `training` is no list of image and label: download it again"
        ) from None
    for image, label in pairs:
        yield Case(case_name(image), image, _existing(_inside(root, label)))
    for image in tests:
        yield Case(case_name(image), image, split="test")


def _numbered_cases(images: Path, masks: Path | None, split: Split) -> Iterator[Case]:
    """Cases of the images `<case>_0000.nii.gz` in one folder; none where it does not exist."""
    numbers = _channels(images)
    if more := sorted(numbers - {"0000"}):
        raise UsageError(
            f"{images} holds files of channel _{more[0]}: this reads one channel, the CT, as _0000"
        )
    if not numbers:
        return
    found = [path for path in find_images(images) if _CHANNEL.search(path.name)]
    for image in found:
        name = case_name(image)
        candidates = [masks / f"{name}{suffix}" for suffix in SUFFIXES] if masks else []
        present = [path for path in candidates if path.exists()]
        if len(present) > 1:
            raise UsageError(f"{present[0]} and {present[1].name} both exist: remove one of them")
        yield Case(name, image, present[0] if present else None, split=split)
    _report_orphans(masks, {case_name(image) for image in found})


def _report_orphans(masks: Path | None, names: set[str]) -> None:
    """Log masks that no image goes with: perhaps an image was lost."""
    files = list_files(masks) if masks and masks.is_dir() else []
    orphans = [path for path in files if path.name.lower().endswith(SUFFIXES)]
    orphans = [path for path in orphans if case_name(path) not in names]
    if orphans:
        log.warning("%s: %d masks without image, such as %s", masks, len(orphans), orphans[0].name)


# Parts of files


def _channels(folder: Path) -> set[str]:
    """The channel numbers of the files in a folder, such as 0000; none where it does not exist."""
    files = list_files(folder) if folder.is_dir() else []
    return {match[1] for path in files if (match := _CHANNEL.search(path.name))}


def _check_header(root: Path, facts: dict[str, Any], channels: Any) -> None:
    where = f"{root}/dataset.json"
    if not isinstance(channels, dict) or len(channels) != 1:
        raise UsageError(f"{where}: channels {channels}: this reads one channel, the CT")
    labels = facts.get("labels")
    names = _names_by_value(labels if isinstance(labels, dict) else {})
    pancreas, lesion = names.get("1", ""), names.get("2", "")
    if len(names) != NUM_LABELS or "pancrea" not in pancreas.lower() or not _LESION.search(lesion):
        raise UsageError(
            f"{where}: labels {labels}: they must be background 0, pancreas 1, lesion 2"
        )


def _names_by_value(labels: dict[str, Any]) -> dict[str, str]:
    """Turn nnU-Net's `name: value` and the decathlon's `value: name` into the latter."""
    if all(key.isdecimal() for key in labels):
        return {key: str(name) for key, name in labels.items()}
    return {str(value): name for name, value in labels.items()}


def read_subtypes(path: Path) -> dict[str, int | None] | None:
    """Read `Names,Subtype`; an empty subtype is unknown. None where there is no such file."""
    if not path.exists():
        return None
    subtypes: dict[str, int | None] = {}
    header, rows = read_csv(path)
    if header != ["Names", "Subtype"]:
        raise UsageError(f"{path}: header {header}: it must be Names,Subtype")
    for line, row in rows:
        try:
            name, value = _table_row(row)
            if name in subtypes:
                raise ValueError(f"{name} with subtype {value} a second time")
        except ValueError as error:
            raise UsageError(
                f"{path}, line {line}: {error}: give each case's name once, without folders, with "
                "0, 1, 2 or nothing"
            ) from None
        subtypes[name] = value
    return subtypes


def _table_row(row: dict[str, Any]) -> tuple[str, int | None]:
    name, value = row["Names"] or "", (row["Subtype"] or "").strip()
    if value not in {"", "0", "1", "2"} or len(row) > 2:
        raise ValueError(f"{name} with subtype {value}")
    try:
        return from_cell(name), int(value) if value else None
    except ValueError as error:
        raise ValueError(f"{name!a} {error}") from None


def _dataset_json(root: Path) -> dict[str, Any]:
    facts = _json(root / "dataset.json")
    if not isinstance(facts, dict):
        raise UsageError(f"{root}/dataset.json is no JSON object: write it again")
    return facts


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{path} cannot be read ({reason(error)}): write it again") from None


def _inside(root: Path, relative: str) -> Path:
    path = root / relative
    if Path(relative).is_absolute() or ".." in path.parts[len(root.parts) :]:
        raise UsageError(f"{root}/dataset.json names {relative}: only paths inside it are read")
    return path


def _existing(path: Path) -> Path | None:
    return path if path.exists() else None
