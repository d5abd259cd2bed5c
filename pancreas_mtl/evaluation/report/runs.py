"""What lies in a run's folder: read as far as it is there, with a sentence for what is not.

A run is a training folder, an evaluation folder or a prediction folder; each holds some of
`metrics.json`, `metrics.csv`, `run.json` and the predicted masks. A report shows what it finds.
"""

from __future__ import annotations

import csv
import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from pancreas_mtl.data.images import case_name
from pancreas_mtl.errors import UsageError

Json = Mapping[str, Any]


@dataclass(frozen=True)
class CaseFiles:
    """Where the volumes of one case are; each may be missing."""

    image: Path | None = None
    reference: Path | None = None
    prediction: Path | None = None
    attention: Path | None = None


@dataclass(frozen=True)
class RunCase:
    """One case of one run: its entry in `metrics.json` (empty without one), and its files.

    `link` names its row in the report's table of cases.
    """

    name: str
    link: str
    scores: Json
    files: CaseFiles
    probabilities: tuple[float, ...] | None = None
    seconds: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Run:
    """A folder's contents. `curves` maps a column of `metrics.csv` to its (epoch, value) pairs."""

    name: str
    folder: Path
    metrics: Json | None
    cases: tuple[RunCase, ...]
    curves: Mapping[str, Sequence[tuple[float, float]]]
    config: Json
    failures: tuple[str, ...]
    missing: tuple[str, ...]

    @property
    def has_scores(self) -> bool:
        """Whether there is a `metrics.json`."""
        return self.metrics is not None

    def value(self, path: str) -> Any:
        """The entry of `metrics.json` at a dotted path, None where there is none."""
        node: Any = self.metrics
        for key in path.split("."):
            if isinstance(node, Mapping):
                node = node.get(key)
            elif isinstance(node, list) and key.isdigit() and int(key) < len(node):
                node = node[int(key)]
            else:
                return None
        return node


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """Read every folder; names are the shortest ends of their paths that differ.

    Raises:
        UsageError: no folder is given, one is given twice, does not exist, or holds no run.
    """
    if not folders:
        raise UsageError("runs is empty: give runs=[DIR,...] with run or evaluation folders")
    resolved = [Path(folder).resolve() for folder in folders]
    twice = [str(path) for path, count in Counter(resolved).items() if count > 1]
    if twice:
        raise UsageError(f"runs names {twice[0]} twice: give each folder once")
    names = _distinct_names(resolved)
    return [
        read_run(folder, name, number)
        for number, (folder, name) in enumerate(zip(resolved, names, strict=True))
    ]


def read_run(folder: Path, name: str, number: int = 0) -> Run:
    """Read one folder, the `number`-th of a report.

    Raises:
        UsageError: the folder does not exist, holds none of the files of a run, or one of them
            cannot be read.
    """
    metrics = _read_json(folder / "metrics.json")
    curves = _read_curves(folder / "metrics.csv")
    predictions = _predictions_folder(folder, metrics)
    record = _read_json(predictions / "run.json") if predictions else None
    if metrics is None and not curves and record is None:
        raise UsageError(
            f"{folder}: no metrics.json, metrics.csv or run.json here: give the output folder of "
            "a training, an evaluation or a prediction"
        )
    return Run(
        name=name,
        folder=folder,
        metrics=metrics,
        cases=tuple(_cases(number, metrics, record, predictions)),
        curves=curves,
        config=_config(folder, record),
        failures=tuple(_failures(record)),
        missing=tuple(_missing(name, metrics, curves, record)),
    )


def _predictions_folder(folder: Path, metrics: Json | None) -> Path | None:
    recorded = (metrics or {}).get("predictions")
    candidates = [Path(recorded)] if recorded else []
    candidates += [folder / "validation", folder]
    found = (path for path in candidates if (path / "run.json").is_file() or path != folder)
    return next((path for path in found if path.is_dir()), None)


def _cases(
    run: int, metrics: Json | None, record: Json | None, predictions: Path | None
) -> Iterable[RunCase]:
    """Every case of `metrics.json`, or else of `run.json`, in that file's order."""
    recorded = {_plain(entry["name"]): entry for entry in (record or {}).get("cases", [])}
    probabilities = _probabilities(predictions)
    references = _index_masks((metrics or {}).get("references"))
    scores = (metrics or {}).get("cases") or [{"name": name} for name in recorded]
    for number, entry in enumerate(scores):
        name = _plain(entry["name"])
        facts = recorded.get(name, {})
        image = facts.get("input")
        yield RunCase(
            name=name,
            link=f"case-{run}-{number}",
            scores=entry if metrics else {},
            files=CaseFiles(
                image=_if_there(image and Path(image)),
                reference=references.get(name),
                prediction=_if_there(predictions and predictions / f"{name}.nii.gz"),
                attention=_if_there(predictions and predictions / "attention" / f"{name}.nii.gz"),
            ),
            probabilities=probabilities.get(name),
            seconds=facts.get("seconds") or {},
        )


def _index_masks(folder: str | None) -> dict[str, Path]:
    """Masks below a folder by case name; files marked `_0000` or below `images*` are images."""
    if not folder or not Path(folder).is_dir():
        return {}
    return {
        case_name(path): path
        for path in sorted(Path(folder).rglob("*.nii*"))
        if not path.name.removesuffix(".gz").endswith("_0000.nii")
        and not path.parent.name.startswith("images")
    }


def _probabilities(predictions: Path | None) -> dict[str, tuple[float, ...]]:
    path = predictions and predictions / "subtype_probabilities.csv"
    if not path or not path.is_file():
        return {}
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    columns = [name for name in (rows[0] if rows else {}) if name[:1] == "p" and name[1:].isdigit()]
    return {
        _plain(row["Names"]): tuple(float(row[column]) for column in columns)
        for row in rows
        if all(row[column] for column in columns)
    }


def _read_json(path: Path) -> Json | None:
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: cannot be read ({error}): make it again") from None
    if not isinstance(content, dict):
        raise UsageError(f"{path}: is no JSON object: make it again")
    return content


def _read_curves(path: Path) -> dict[str, list[tuple[float, float]]]:
    """The numeric columns of `metrics.csv` against `epoch`; empty cells are left out."""
    if not path.is_file():
        return {}
    curves: dict[str, list[tuple[float, float]]] = {}
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            for name, cell in row.items():
                if name != "epoch" and (value := _number(cell)) is not None:
                    curves.setdefault(name, []).append((float(row["epoch"]), value))
    return curves


def _number(cell: str | None) -> float | None:
    try:
        value = float(cell or "nan")
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _config(folder: Path, record: Json | None) -> Json:
    path = folder / "bundle" / "config.yaml"
    if path.is_file():
        return yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    return (record or {}).get("config") or {}


def _failures(record: Json | None) -> Iterable[str]:
    for failure in (record or {}).get("failures", []):
        name, error = (failure.get("name"), failure.get("error")) if failure else ("", "")
        yield f"{name}: {error}"


def _missing(
    name: str, metrics: Json | None, curves: Mapping[str, Any], record: Json | None
) -> Iterable[str]:
    if metrics is None:
        yield f"{name} has no metrics.json: no scores. Evaluate its predictions to add them."
    if not curves:
        yield f"{name} has no metrics.csv: no training curves. Add the training folder to runs."
    if record is None:
        yield f"{name} has no run.json of its predictions: no pictures and no timings."


def _distinct_names(folders: Sequence[Path]) -> list[str]:
    for depth in range(1, max(len(folder.parts) for folder in folders) + 1):
        names = ["/".join(folder.parts[-depth:]) for folder in folders]
        if len(set(names)) == len(names):
            break
    return names


def _plain(name: str) -> str:
    return case_name(Path(name))


def _if_there(path: Path | None) -> Path | None:
    return path if path and path.is_file() else None
