"""A whole phantom dataset on disk: made once, continued after an interruption, never mixed up."""

from __future__ import annotations

import json
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, get_args

from pancreas_mtl.data.files import is_leftover, write_text
from pancreas_mtl.data.phantom.files import (
    FORMAT,
    MAX_CASES,
    Layout,
    PhantomPlan,
    list_items,
    list_tables,
    write_case,
    write_tables,
)
from pancreas_mtl.data.phantom.statistics import Difficulty, Size
from pancreas_mtl.data.pool import map_in_processes
from pancreas_mtl.errors import CaseError, UsageError

MANIFEST = "phantom.json"
FOLDER = "folder (data.root of a training, output_dir of other commands)"
VALIDATION_SHARE, TEST_SHARE = 0.1, 0.2  # of num_cases; the rest trains
CHOICES = {"layout": get_args(Layout), "difficulty": get_args(Difficulty), "size": get_args(Size)}


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
    """Write a phantom dataset, byte for byte the same for the same arguments.

    Cases that are there already are kept, so an interrupted call can be repeated. The masks of the
    test cases and their `subtypes.csv` go to `references/`; `phantom.json` says what was asked.

    Args:
        output_dir: new, empty, or with the same dataset, complete or not.
        num_cases: shared out as 70 % training, 10 % validation and 20 % test cases.
        num_train: training cases, instead of their share of `num_cases`.
        num_validation: validation cases, likewise.
        num_test: test cases, likewise.
        seed: of all cases, from 0.
        layout: `quiz` or `nnunet`.
        difficulty: `easy` or `hard`.
        size: `full` or `small`, which has voxels of twice the edge.
        workers: processes.
        overwrite: replace the files of another phantom dataset in `output_dir`.

    Raises:
        UsageError: bad counts or choices, or `output_dir` holds something else.
        CaseError: a case cannot be written.
    """
    counts = _counts(num_cases, num_train, num_validation, num_test)
    plan = PhantomPlan(seed, *counts, layout=layout, difficulty=difficulty, size=size)
    _check(plan)
    _claim(output_dir, plan, overwrite=overwrite)
    items = list(list_items(plan, output_dir))
    for item in items:
        _make_folder(item.image.parent)
        _make_folder(item.mask.parent)
    missing = [item for item in items if not (item.image.exists() and item.mask.exists())]
    write = partial(write_case, plan=plan)
    for item, outcome in map_in_processes(write, missing, workers=workers, label="phantom cases"):
        if isinstance(outcome, CaseError):
            raise CaseError(f"case {item.index}: {outcome}") from None
        if isinstance(outcome, Exception):
            raise outcome
    write_tables(plan, items, output_dir)
    return plan


def _counts(num_cases: int | None, *parts: int | None) -> tuple[int, int, int]:
    """Training, validation and test cases; a part that is given wins over its share."""
    if num_cases is not None and num_cases < 1:
        raise UsageError(f"num_cases={num_cases}: give a number from 1")
    total = num_cases or 0
    validation, test = round(VALIDATION_SHARE * total), round(TEST_SHARE * total)
    shares = (total - validation - test, validation, test)
    train, validation, test = (
        share if part is None else part for part, share in zip(parts, shares, strict=True)
    )
    return train, validation, test


def _check(plan: PhantomPlan) -> None:
    for key in ("num_train", "num_validation", "num_test"):
        count = getattr(plan, key)
        if not 0 <= count <= MAX_CASES:
            raise UsageError(f"{key}={count}: give a number from 0 to {MAX_CASES}")
    if plan.num_train + plan.num_validation + plan.num_test == 0:
        raise UsageError("no cases are asked for: give num_cases=N, or num_train=N, num_test=N")
    if plan.seed < 0:
        raise UsageError(f"seed={plan.seed}: give a number from 0")
    for key, known in CHOICES.items():
        if getattr(plan, key) not in known:
            raise UsageError(f"{key}={getattr(plan, key)}: choose one of {', '.join(known)}")


def _is_empty(folder: Path) -> bool:
    return all(is_leftover(path) for path in folder.iterdir())


def _claim(output_dir: Path, plan: PhantomPlan, *, overwrite: bool) -> None:
    """Leave in `output_dir` the manifest of this plan and no files of another."""
    manifest, wanted = output_dir / MANIFEST, asdict(plan)
    if manifest.exists():
        found = _read_manifest(manifest)
        if found == wanted:
            return
        if not overwrite:
            key = next(key for key in wanted if found[key] != wanted[key])
            raise UsageError(
                f"{output_dir} holds another phantom dataset, with {key}={found[key]} instead of "
                f"{wanted[key]}: give another {FOLDER}, or remove it"
            )
        _remove(PhantomPlan(**found), output_dir)
    elif output_dir.exists() and not (output_dir.is_dir() and _is_empty(output_dir)):
        raise UsageError(f"{output_dir} holds something else: give an empty or new {FOLDER}")
    _make_folder(output_dir)
    write_text(manifest, json.dumps(wanted, indent=2) + "\n")


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = f"{folder} cannot be made ({error.strerror})"
        raise UsageError(f"{reason}: give another {FOLDER}") from None


def _read_manifest(path: Path) -> dict[str, Any]:
    """What a dataset was made with; `format` guards against other versions' files."""
    try:
        found: dict[str, Any] = json.loads(path.read_text())
    except ValueError:
        found = {}
    if found.get("format") != FORMAT or found.keys() != PhantomPlan.__dataclass_fields__.keys():
        raise UsageError(f"{path} is of another version: give another {FOLDER}, or remove it")
    return found


def _remove(plan: PhantomPlan, output_dir: Path) -> None:
    """Delete the files of a dataset, its manifest last, and the folders that this leaves empty."""
    items = list(list_items(plan, output_dir))
    files = [path for item in items for path in (item.image, item.mask)]
    files += list_tables(plan, output_dir)
    for file in files:
        file.unlink(missing_ok=True)
    parents = {parent for file in files for parent in file.parents if output_dir in parent.parents}
    for folder in sorted(parents, reverse=True):  # the deeper ones first
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
    (output_dir / MANIFEST).unlink()
