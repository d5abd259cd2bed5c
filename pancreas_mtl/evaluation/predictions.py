"""What a prediction folder says of each case."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pancreas_mtl.data.cases import read_subtypes
from pancreas_mtl.data.files import read_csv
from pancreas_mtl.data.names import from_cell
from pancreas_mtl.errors import UsageError
from pancreas_mtl.evaluation.references import masks_by_case
from pancreas_mtl.inference.record import RECORD, read_prediction_record
from pancreas_mtl.types import NUM_SUBTYPES

SUM_TOLERANCE = 1e-3  # of probabilities that are written with a few digits


@dataclass(frozen=True)
class Prediction:
    """The answer for one case, as far as there is one.

    `candidates` is a detection map: the mask of every lesion candidate, filled with its score in
    (0, 1], as in the PI-CAI and PANORAMA challenges. `coverage` is what the conformal set states,
    and `image` the CT that was read, if known.
    """

    name: str
    mask: Path | None = None
    subtype: int | None = None
    probabilities: tuple[float, ...] | None = None  # (S,)
    conformal_set: tuple[int, ...] | None = None
    coverage: float | None = None
    candidates: Path | None = None
    image: Path | None = None


def read_predictions(folders: Sequence[Path]) -> dict[str, Prediction]:
    """Read prediction folders, by case; no voxel is read.

    Each holds masks `<case>.nii.gz`, and perhaps `subtype_results.csv`,
    `subtype_probabilities.csv`, `lesion_candidates/<case>.nii.gz` and `run.json`. A subtype that is
    not in the first file is the most probable one of the second.

    Raises:
        UsageError: no such folder, a case in two folders, or a malformed file.
    """
    if not folders:
        raise UsageError("predictions is empty: give a prediction folder, or a list of them")
    everything: dict[str, Prediction] = {}
    where: dict[str, Path] = {}
    for folder in folders:
        for name, prediction in _read_folder(folder).items():
            if name in everything:
                raise UsageError(
                    f"predictions: {name} is in {where[name]} and in {folder}: each case may be "
                    "predicted once"
                )
            everything[name] = prediction
            where[name] = folder
    return everything


def _read_folder(folder: Path) -> dict[str, Prediction]:
    if not folder.is_dir():
        raise UsageError(f"predictions={folder} is no folder: give the folder of the masks")
    masks = masks_by_case(folder)
    candidates = masks_by_case(folder / "lesion_candidates")
    subtypes = read_subtypes(folder / "subtype_results.csv") or {}
    probabilities, sets = _probabilities(folder / "subtype_probabilities.csv")
    images, coverage = _recorded(folder)
    predictions = {}
    for name in sorted({*masks, *subtypes, *probabilities}):
        own = probabilities.get(name)
        subtype = subtypes.get(name)
        predictions[name] = Prediction(
            name=name,
            mask=masks.get(name),
            subtype=own.index(max(own)) if subtype is None and own else subtype,
            probabilities=own,
            conformal_set=sets.get(name),
            coverage=coverage,
            candidates=candidates.get(name),
            image=images.get(name),
        )
    return predictions


def _probabilities(
    path: Path,
) -> tuple[dict[str, tuple[float, ...]], dict[str, tuple[int, ...]]]:
    """Read `Names,p0,p1,p2` and, where it is there, the column `conformal_set` such as `0|2`."""
    probabilities: dict[str, tuple[float, ...]] = {}
    sets: dict[str, tuple[int, ...]] = {}
    if not path.exists():
        return probabilities, sets
    header, rows = read_csv(path)
    if header[:4] != ["Names", "p0", "p1", "p2"]:
        raise UsageError(f"{path}: header {header}: it must be Names,p0,p1,p2")
    for line, row in rows:
        try:
            name = from_cell(row.get("Names") or "")
            if name in probabilities:
                raise ValueError("a second time")
            probabilities[name] = _distribution(row)
            if row.get("conformal_set") not in (None, "-"):
                sets[name] = _members(row["conformal_set"])
        except (KeyError, TypeError, ValueError):
            raise UsageError(
                f"{path}, line {line}: {','.join(map(str, row.values()))}: it must be "
                "Names,p0,p1,p2, once a case, with probabilities that sum to 1, and perhaps a "
                "conformal_set such as 0|2"
            ) from None
    return probabilities, sets


def _distribution(row: Mapping[str, str]) -> tuple[float, ...]:
    values = tuple(float(row[f"p{s}"]) for s in range(NUM_SUBTYPES))
    if not all(0 <= p <= 1 for p in values) or not math.isclose(
        sum(values), 1, abs_tol=SUM_TOLERANCE
    ):
        raise ValueError("no distribution")
    return values


def _members(text: str) -> tuple[int, ...]:
    members = tuple(int(part) for part in text.split("|") if part)
    if len(set(members)) < len(members) or not set(members) <= set(range(NUM_SUBTYPES)):
        raise ValueError("no set of subtypes")
    return members


def _recorded(folder: Path) -> tuple[dict[str, Path], float | None]:
    """The input of each case and the coverage of the sets, as far as `run.json` names them."""
    record = read_prediction_record(folder)
    if record is None and (folder / RECORD).exists() and (folder / "validation").is_dir():
        raise UsageError(f"{folder} is a training, not a prediction: give {folder / 'validation'}")
    if record is None:
        return {}, None
    images = {case["name"]: Path(case["input"]) for case in record["cases"]}
    return images, record.get("conformal_coverage")
