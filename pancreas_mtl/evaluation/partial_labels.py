"""Partly labelled copies of a dataset, to see what half a label is worth.

Of the cases that train in fold 0 every other one, within each subtype, keeps its mask and subtype;
the rest keeps one of them or is left out. Fold 0's validation cases keep everything, so all copies
are validated alike.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from pancreas_mtl.data.cases import read_cases
from pancreas_mtl.data.files import link_or_copy, make_folder, write_csv, write_json
from pancreas_mtl.data.splits import make_splits
from pancreas_mtl.errors import UsageError
from pancreas_mtl.types import Case

REST = ("nothing", "mask", "subtype")
HEADER = {
    "channel_names": {"0": "CT"},
    "labels": {"background": 0, "pancreas": 1, "lesion": 2},
    "file_ending": ".nii.gz",
}


def write_parts(source: Path, output_dir: Path, parts: Mapping[str, str]) -> None:
    """Write a copy of each name in nnU-Net's layout, its files linked; what is there is kept.

    Args:
        source: a dataset in the quiz layout.
        output_dir: gets a folder per copy.
        parts: what is known of the rest, one of REST, by name.

    Raises:
        UsageError: what is none of REST, or a copy that was made with another one.
    """
    for name, rest in parts.items():
        if rest not in REST:
            raise UsageError(f"parts.{name}={rest}: choose one of {', '.join(REST)}")
        document = output_dir / name / "dataset.json"
        if not document.exists():
            _write_part(source, output_dir / name, rest)
        elif (made := json.loads(document.read_text(encoding="utf-8"))["rest"]) != rest:
            raise UsageError(
                f"parts.{name}={rest}: {output_dir / name} was made with {made}: give the part "
                "another name, or give another output_dir"
            )


def _write_part(source: Path, root: Path, rest: str) -> None:
    cases = {case.name: case for case in read_cases("quiz", source) if case.split == "train"}
    fold = make_splits(list(cases.values())).choose(0)
    full = {*fold.validation, *_every_other([cases[name] for name in fold.train])}
    kept = [name for name in cases if name in full or rest != "nothing"]
    for folder in ("imagesTr", "labelsTr"):
        make_folder(root / folder)
    for name in kept:
        case = cases[name]
        link_or_copy(case.image, root / "imagesTr" / f"{name}_0000.nii.gz")
        if case.mask is not None and (name in full or rest == "mask"):
            link_or_copy(case.mask, root / "labelsTr" / f"{name}.nii.gz")
    known = [
        (f"{name}.nii.gz", cases[name].subtype if name in full or rest == "subtype" else "")
        for name in kept
    ]
    write_csv(root / "subtypes.csv", ["Names", "Subtype"], known)
    train = [name for name in fold.train if name in kept]
    write_json(root / "splits_final.json", [{"train": train, "val": list(fold.validation)}])
    write_json(root / "dataset.json", HEADER | {"numTraining": len(kept), "rest": rest})


def _every_other(cases: list[Case]) -> list[str]:
    ordered = sorted(cases, key=lambda case: (str(case.subtype), case.name))
    return [case.name for case in ordered[::2]]
