"""The references to compare with, from whichever folder holds them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pancreas_mtl.data.cases import read_subtypes, subtype_in_name
from pancreas_mtl.data.images import list_files
from pancreas_mtl.data.names import case_name
from pancreas_mtl.data.nifti import SUFFIXES
from pancreas_mtl.errors import UsageError
from pancreas_mtl.types import NUM_SUBTYPES


@dataclass(frozen=True)
class Reference:
    """What is known of a case; a mask or a subtype may be missing, and then is not evaluated."""

    name: str
    mask: Path | None = None
    subtype: int | None = None


def read_references(path: Path) -> list[Reference]:
    """List the references in a folder, sorted by name; no voxel is read.

    The folder is one of: masks `<case>.nii.gz`, such as a phantom's `references/` or nnU-Net's
    `labelsTr/`; one part of the quiz layout, such as `ROOT/train` or `ROOT/validation`; an
    nnU-Net dataset, whose `labelsTr/` is taken. Outside the quiz layout, subtypes come from
    `subtypes.csv` in the folder or the one above, else from names of the form
    `quiz_<subtype>_<id>`.

    Raises:
        UsageError: no such folder, or no reference in it; a name that occurs twice.
    """
    if not path.is_dir():
        raise UsageError(f"references={path} is no folder: give the folder of the masks")
    if (path / "labelsTr").is_dir():
        path = path / "labelsTr"
    found = _quiz_references(path) or _flat_references(path)
    if not found:
        raise UsageError(f"references={path} holds no masks and no subtypes.csv{_hint(path)}")
    names = [reference.name for reference in found]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UsageError(f"references={path}: {twice[0]} occurs twice: remove one of them")
    return sorted(found, key=lambda reference: reference.name)


def masks_by_case(folder: Path) -> dict[str, Path]:
    """The masks in a folder, none where it does not exist; `<case>_0000.nii.gz` is an image.

    Raises:
        UsageError: a case has two.
    """
    masks: dict[str, Path] = {}
    for path in _nifti_files(folder):
        name = case_name(path)
        if not path.name.startswith(f"{name}_0000"):
            if name in masks:
                raise UsageError(f"{masks[name]} and {path.name} both exist: remove one of them")
            masks[name] = path
    return masks


def _quiz_references(folder: Path) -> list[Reference]:
    """Those of `subtype{0,1,2}/`; a case with an image alone still has its subtype."""
    found = []
    for subtype in range(NUM_SUBTYPES):
        part = folder / f"subtype{subtype}"
        names = {case_name(path) for path in _nifti_files(part)}
        found += _references(masks_by_case(part), dict.fromkeys(names, subtype))
    return found


def _flat_references(folder: Path) -> list[Reference]:
    masks = masks_by_case(folder)
    subtypes = read_subtypes(folder / "subtypes.csv")
    if subtypes is not None:
        return _references(masks, subtypes)
    above = read_subtypes(folder.parent / "subtypes.csv")
    if above is not None:
        return _references(masks, {name: above.get(name) for name in masks})
    return _references(masks, {name: subtype_in_name(name) for name in masks})


def _references(masks: dict[str, Path], subtypes: Mapping[str, int | None]) -> list[Reference]:
    """Everything that has a mask or a subtype."""
    names = {*masks, *(name for name, subtype in subtypes.items() if subtype is not None)}
    return [Reference(name, masks.get(name), subtypes.get(name)) for name in sorted(names)]


def _nifti_files(folder: Path) -> list[Path]:
    files = list_files(folder) if folder.is_dir() else []
    return [path for path in files if path.name.lower().endswith(SUFFIXES)]


def _hint(path: Path) -> str:
    parts = [part for part in ("validation", "train") if (path / part).is_dir()]
    return f": give references={path / parts[0]}" if parts else ": give the folder of the masks"
