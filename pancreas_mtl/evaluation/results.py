"""What an evaluation found, field by field as in `metrics.json`.

A value that is not defined is null there: the mean of no case, the interval of a single case, the
AUROC of a subtype without cases, whatever a run gives no prediction of, whatever a case has no
reference of.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from pancreas_mtl.data.files import atomic_path, make_folder
from pancreas_mtl.data.names import to_cell
from pancreas_mtl.errors import UsageError
from pancreas_mtl.evaluation.scoring import REGIONS, MaskScores
from pancreas_mtl.metrics.intervals import Estimate
from pancreas_mtl.metrics.lesions import Froc
from pancreas_mtl.metrics.segmentation import RegionScores
from pancreas_mtl.metrics.subtype import ReliabilityBin

SCHEMA = 1


@dataclass(frozen=True)
class CaseResult:
    """One case: its masks and its subtype, each None without reference or prediction."""

    name: str
    missing: bool
    masks: MaskScores | None
    subtype: int | None
    subtype_predicted: int | None
    subtype_probabilities: tuple[float, ...] | None
    conformal_set: tuple[int, ...] | None

    def as_json(self) -> dict[str, Any]:
        """One flat object with the same keys for every case."""
        row: dict[str, Any] = {"name": self.name, "missing": self.missing}
        for region in REGIONS:
            scores = asdict(self.masks.regions[region]) if self.masks else {}
            row |= {f"{region}_{f.name}": scores.get(f.name) for f in fields(RegionScores)}
        for key in ("reference", "predicted", "found"):
            row[f"lesions_{key}"] = getattr(self.masks.lesions, key) if self.masks else None
        for key in ("subtype", "subtype_predicted", "subtype_probabilities", "conformal_set"):
            row[key] = getattr(self, key)
        return row


@dataclass(frozen=True)
class RegionMetrics:
    """Means over the cases with a reference mask."""

    dsc: Estimate
    nsd: Estimate
    nsd_tolerance_mm: float
    hd95_mm: Estimate
    assd_mm: Estimate
    absolute_volume_error_ml: Estimate
    relative_volume_error: Estimate
    n_cases: int


@dataclass(frozen=True)
class ClassMetrics:
    """One subtype against the others."""

    subtype: int
    n_cases: int
    precision: float | None
    recall: float | None
    f1: float | None
    auroc: float | None


@dataclass(frozen=True)
class ConformalMetrics:
    """The conformal sets: how often they hold the subtype, and how many subtypes they hold."""

    target_coverage: float
    coverage: Estimate
    mean_size: Estimate


@dataclass(frozen=True)
class SubtypeMetrics:
    """Over the cases whose subtype is known, all at once."""

    macro_f1: Estimate
    balanced_accuracy: Estimate
    auroc: Estimate
    mcc: Estimate
    ece: float | None
    brier: float | None
    brier_ci95: tuple[float, float] | None
    confusion_matrix: list[list[int]]  # reference by prediction
    unpredicted: list[int]  # cases of each subtype without prediction
    per_class: list[ClassMetrics]
    reliability: list[ReliabilityBin]
    conformal: ConformalMetrics | None
    n_cases: int


@dataclass(frozen=True)
class LesionDetection:
    """Lesions as objects, over all cases together; `froc` where candidates are given."""

    hit_iou: float
    n_reference: int
    n_predicted: int
    n_found: int
    sensitivity: Estimate
    precision: Estimate
    f1: Estimate
    froc: Froc | None


@dataclass(frozen=True)
class Group:
    """The cases of one subtype, or with lesions of one size."""

    name: str
    n_cases: int
    whole_pancreas_dsc: Estimate
    lesion_dsc: Estimate
    lesion_sensitivity: Estimate
    subtype_accuracy: Estimate


@dataclass(frozen=True)
class Target:
    """A target and what was reached; `met` is None where nothing was measured."""

    name: str
    target: float
    value: float | None
    ci95: tuple[float, float] | None
    met: bool | None


@dataclass(frozen=True)
class Failure:
    """A case whose files could not be used."""

    name: str
    error: str


@dataclass(frozen=True)
class Metrics:
    """The content of `metrics.json`."""

    schema: int
    n_cases: int
    whole_pancreas: RegionMetrics
    pancreas: RegionMetrics
    lesion: RegionMetrics
    subtype: SubtypeMetrics
    targets: list[Target]
    lesion_detection: LesionDetection
    by_subtype: list[Group]
    by_lesion_size: list[Group]
    missing: list[str]
    unreferenced: list[str]
    failures: list[Failure]
    predictions: str | list[str]
    references: str | None
    cases: list[CaseResult]

    def as_json(self) -> dict[str, Any]:
        """Objects, lists and scalars, with None for what is not defined."""
        return asdict(replace(self, cases=[])) | {"cases": [case.as_json() for case in self.cases]}


def check_folder(path: Path) -> Path:
    """Refuse the folder of a training, which has files of the same names.

    Raises:
        UsageError: it holds a training run.
    """
    if (path / "checkpoints").exists() or (path / "bundle").exists():
        raise UsageError(f"output_dir={path} holds a training run: give another output_dir")
    return path


@contextmanager
def folder_if_used(path: Path) -> Iterator[None]:
    """Make the folder first, to know that it can be; bad usage leaves no empty one behind."""
    existed = path.exists()
    make_folder(path)
    try:
        yield
    except UsageError:
        if not existed:
            path.rmdir()
        raise


def write_results(metrics: Metrics, output_dir: Path) -> list[Path]:
    """Write `metrics.json` and `metrics.csv` (a row per case) into a folder that exists.

    Raises:
        CaseError: the disk is full, or the folder cannot be written to.
    """
    document = write_metrics(metrics, output_dir / "metrics.json")
    rows = [case.as_json() | {"name": to_cell(case.name)} for case in metrics.cases]
    table = output_dir / "metrics.csv"
    with atomic_path(table) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(rows[0])
        writer.writerows([_cell(value) for value in row.values()] for row in rows)
    return [document, table]


def write_metrics(metrics: Metrics, path: Path) -> Path:
    """Write the document of `metrics.json`, all at once or not at all.

    Raises:
        CaseError: the disk is full, or the folder cannot be written to.
    """
    text = json.dumps(metrics.as_json(), indent=1, allow_nan=False) + "\n"
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path


def _cell(value: Any) -> Any:
    """A value as text for CSV: undefined ones are empty, lists are joined by a bar."""
    return "|".join(map(str, value)) if isinstance(value, tuple) else value
