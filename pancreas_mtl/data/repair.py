"""A mended copy of a dataset: what can be repaired honestly is, what cannot is left out and named.

Labels near an integer are rounded and voxels that are not finite take the lowest finite value. A
mask that cannot be used is left out, and its case keeps the subtype; an image that cannot be used,
a duplicate and a case with contradictory subtypes are left out altogether.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pancreas_mtl.data.audit import LISTED, AuditReport
from pancreas_mtl.data.files import reason
from pancreas_mtl.data.images import read_image, read_mask, write_mask, write_volume
from pancreas_mtl.data.names import case_name, from_cell
from pancreas_mtl.data.pool import map_in_processes
from pancreas_mtl.errors import CaseError, UsageError
from pancreas_mtl.types import Case

DROPS_CASE = {"unreadable_image", "constant_image", "subtype_conflict", "duplicate"}
DROPS_MASK = {"unreadable_mask", "other_grid", "unknown_label", "empty_mask"}
MENDED = {"not_finite", "rounded_labels"}


@dataclass(frozen=True)
class Repair:
    """What becomes of one case with the findings `codes`."""

    case: Case
    codes: frozenset[str]

    @property
    def keeps_image(self) -> bool:
        """Whether the case is in the copy at all; one that would teach nothing is not."""
        return not self.codes & DROPS_CASE and (
            self.case.split == "test" or self.keeps_mask or self.case.subtype is not None
        )

    @property
    def keeps_mask(self) -> bool:
        """Whether its mask is in the copy."""
        return self.case.mask is not None and not self.codes & (DROPS_MASK | DROPS_CASE)

    @property
    def loses_something(self) -> bool:
        """Whether the case or its mask is left out."""
        return not self.keeps_image or (self.case.mask is not None and not self.keeps_mask)

    @property
    def action(self) -> str:
        """What was done, such as `mask left out: empty_mask`."""
        reasons = ", ".join(sorted(self.codes & (DROPS_CASE | DROPS_MASK)))
        if not self.keeps_image:
            return f"left out: {reasons or 'neither mask nor subtype'}"
        if reasons:
            return f"mask left out: {reasons}"
        mended = ", ".join(sorted(self.codes & MENDED))
        return f"mended: {mended}" if mended else "copied"


def repair_text(repairs: Sequence[Repair]) -> str:
    """One line for each kind of action, with the first cases."""
    names = defaultdict(list)
    for repair in repairs:
        names[repair.action].append(repair.case.name)
    return "\n".join(
        f"{action} ({len(cases)}): {', '.join(cases[:LISTED])}{', ...' * (len(cases) > LISTED)}"
        for action, cases in sorted(names.items())
    )


def check_destination(root: Path, destination: Path) -> None:
    """Refuse to write a copy into the dataset, around it, or over something.

    Raises:
        UsageError: with the reason.
    """
    here, there = root.resolve(), destination.resolve()
    if there.is_relative_to(here) or here.is_relative_to(there):
        raise UsageError(f"fix=true writes to {destination}, in data.root={root}: give output_dir")
    if destination.exists():
        raise UsageError(f"{destination} exists already: remove it, or give another output_dir")


def write_repaired(
    report: AuditReport, root: Path, destination: Path, *, workers: int
) -> list[Repair]:
    """Write the mended copy, in the layout of the original, all at once or not at all.

    Args:
        report: of the cases in `root`, which stay as they are.
        root: the dataset's folder.
        destination: a folder that does not exist yet.
        workers: processes.

    Raises:
        UsageError: `destination` lies in `root` or exists.
        CaseError: the disk is full, or a file changed since it was audited.
    """
    check_destination(root, destination)
    codes = defaultdict(set)
    for finding in report.findings:
        codes[finding.case].add(finding.code)
    repairs = [Repair(case, frozenset(codes[case.name])) for case in report.cases]
    kept = [repair for repair in repairs if repair.keeps_image]
    draft = destination.with_name(f".{destination.name}.draft")
    shutil.rmtree(draft, ignore_errors=True)  # of an interrupted run
    try:
        draft.mkdir(parents=True)
        write = partial(_write_case, root=root, draft=draft)
        for _, result in map_in_processes(write, kept, workers=workers, label="repair"):
            if isinstance(result, Exception):
                raise result
        _write_tables(root, draft, [repair.case for repair in kept])
        os.replace(draft, destination)
    except OSError as error:
        raise CaseError(f"{destination} cannot be written ({reason(error)}): free space") from None
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return repairs


def _write_case(repair: Repair, *, root: Path, draft: Path) -> None:
    case = repair.case
    image_path = draft / case.image.relative_to(root)
    image_path.parent.mkdir(parents=True, exist_ok=True)
    if "not_finite" in repair.codes:
        image = read_image(case.image, warn=lambda _: None)
        write_volume(image_path, image.array, image.source)
    else:
        shutil.copyfile(case.image, image_path)
    if case.mask is None or not repair.keeps_mask:
        return
    mask_path = draft / case.mask.relative_to(root)
    mask_path.parent.mkdir(parents=True, exist_ok=True)
    if "rounded_labels" in repair.codes:
        mask = read_mask(case.mask)
        write_mask(mask_path, mask.array, mask.source)
    else:
        shutil.copyfile(case.mask, mask_path)


def _write_tables(root: Path, draft: Path, kept: list[Case]) -> None:
    """Copy the layout's tables, with the kept cases alone."""
    names = {case.name for case in kept}
    if (table := root / "subtypes.csv").exists():
        with table.open(newline="", encoding="utf-8-sig") as file:
            header, *rows = csv.reader(file)
        with (draft / table.name).open("w", newline="", encoding="utf-8") as file:
            rows = [row for row in rows if row and from_cell(row[0]) in names]
            csv.writer(file, lineterminator="\n").writerows([header, *rows])
    if (folds := root / "splits_final.json").exists():
        filtered = [
            {side: [name for name in fold[side] if name in names] for side in ("train", "val")}
            for fold in _json(folds)
        ]
        _write_json(draft / folds.name, [fold for fold in filtered if all(fold.values())])
    if (facts := root / "dataset.json").exists():
        _write_json(draft / facts.name, _filtered_dataset(_json(facts), kept))


def _filtered_dataset(facts: dict[str, Any], kept: list[Case]) -> dict[str, Any]:
    names = {case.name for case in kept}
    facts["numTraining"] = sum(case.split == "train" for case in kept)
    if "training" in facts:  # the decathlon lists its files
        facts["training"] = [
            pair for pair in facts["training"] if case_name(Path(pair["image"])) in names
        ]
        facts["test"] = [
            image for image in facts.get("test", []) if case_name(Path(image)) in names
        ]
        facts["numTest"] = len(facts["test"])
    return facts


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8-sig"))


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")
