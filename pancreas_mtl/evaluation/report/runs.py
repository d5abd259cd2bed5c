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

from pancreas_mtl.data.files import UNREADABLE, read_yaml, reason
from pancreas_mtl.data.names import case_name
from pancreas_mtl.errors import UsageError
from pancreas_mtl.evaluation.predictions import Prediction, read_predictions
from pancreas_mtl.inference.record import RECORD, read_prediction_record

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
    notes: tuple[str, ...]

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
    if not folder.is_dir():
        raise UsageError(f"runs: {folder} is no folder; give the output folders of runs")
    metrics = _read_metrics(folder / "metrics.json")
    curves = _read_curves(folder / "metrics.csv")
    predictions = _prediction_folders(folder, metrics)
    records = [record for path in predictions if (record := read_prediction_record(path))]
    if metrics is None and not curves and not records:
        raise UsageError(
            f"{folder}: no metrics.json, metrics.csv or run.json here: give the output folder of "
            "a training, an evaluation or a prediction"
        )
    return Run(
        name=name,
        folder=folder,
        metrics=metrics,
        cases=tuple(_cases(number, metrics, records, predictions)),
        curves=curves,
        config=read_config(folder, records),
        notes=tuple(_notes(name, metrics, records, has_curves=bool(curves))),
    )


def _prediction_folders(folder: Path, metrics: Json | None) -> list[Path]:
    """The folder of a training's validation; else those that the metrics name; else this one."""
    if (folder / "validation" / RECORD).is_file():
        return [folder / "validation"]
    recorded = (metrics or {}).get("predictions") or []
    named = [Path(path) for path in ([recorded] if isinstance(recorded, str) else recorded)]
    found = [path for path in named if path.is_dir()]
    return found or [path for path in (folder,) if read_prediction_record(path)]


def _cases(
    run: int, metrics: Json | None, records: Sequence[Json], predictions: Sequence[Path]
) -> Iterable[RunCase]:
    """Every case of `metrics.json`, or else of `run.json`, in that file's order."""
    recorded = {entry["name"]: entry for record in records for entry in record["cases"]}
    predicted = read_predictions(predictions) if predictions else {}
    references = _index_masks((metrics or {}).get("references"))
    beside = _images_beside(recorded.values())
    attention = {path.name: path for f in predictions for path in f.glob("attention/*.nii.gz")}
    entries = metrics["cases"] if metrics else [{"name": name} for name in recorded]
    for number, entry in enumerate(entries):
        name = entry["name"]
        prediction = predicted.get(name, Prediction(name))
        image = prediction.image or beside.get(name)
        probabilities = entry.get("subtype_probabilities")
        yield RunCase(
            name=name,
            link=f"case-{run}-{number}",
            scores=entry if metrics else {"subtype_predicted": prediction.subtype},
            files=CaseFiles(
                image=image if image and image.exists() else None,
                reference=references.get(name),
                prediction=prediction.mask,
                attention=attention.get(f"{name}.nii.gz"),
            ),
            probabilities=tuple(probabilities) if probabilities else prediction.probabilities,
            seconds=recorded.get(name, {}).get("seconds") or {},
        )


def _images_beside(entries: Iterable[Json]) -> dict[str, Path]:
    """The CTs that lie beside those of `run.json`, by case name, for cases without prediction."""
    folders = {Path(entry["input"]).parent for entry in entries}
    return {case_name(path): path for one in sorted(folders) for path in one.glob("*_0000.nii*")}


def _index_masks(folder: str | None) -> dict[str, Path]:
    """Masks below a folder by case name; files marked `_0000` or in `images*` are images."""
    if not folder or not Path(folder).is_dir():
        return {}
    return {
        case_name(path): path
        for path in sorted(Path(folder).rglob("*.nii*"))
        if not path.name.removesuffix(".gz").endswith("_0000.nii")
        and not path.parent.name.startswith("images")
    }


def _read_metrics(path: Path) -> Json | None:
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content["cases"], list):
            raise ValueError("cases is no list")
    except UNREADABLE as error:
        raise UsageError(f"{path} cannot be read ({reason(error)}): make it again") from None
    return content


def _read_curves(path: Path) -> dict[str, list[tuple[float, float]]]:
    """The numeric columns of a training's `metrics.csv`; empty cells are left out.

    An evaluation's file of that name has a row a case instead of an epoch, and no curves.
    """
    if not path.is_file():
        return {}
    curves: dict[str, list[tuple[float, float]]] = {}
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            epoch = _number(row.get("epoch"))
            for name, cell in row.items():
                value = _number(cell)
                if name != "epoch" and epoch is not None and value is not None:
                    curves.setdefault(name, []).append((epoch, value))
    return curves


def _number(cell: str | None) -> float | None:
    try:
        value = float(cell or "nan")
    except (TypeError, ValueError):
        return None
    return value if math.isfinite(value) else None


def read_config(folder: Path, records: Sequence[Json] = ()) -> Json:
    """The resolved config of a training run, else that of the prediction."""
    path = folder / "bundle" / "config.yaml"
    if path.is_file():
        return read_yaml(path)
    return records[0].get("config") or {} if records else {}


def _notes(
    name: str, metrics: Json | None, records: Sequence[Json], *, has_curves: bool
) -> Iterable[str]:
    """What a reader should know: what is missing, and what went wrong."""
    if metrics is None:
        yield f"{name} has no metrics.json, so no scores: evaluate its predictions to add them."
    if not has_curves:
        yield f"{name} has no training curves: add the training's folder to runs to see them."
    if not records:
        yield f"{name} has no predictions with a run.json: no pictures and no timings."
    inputs = [Path(entry["input"]) for record in records for entry in record["cases"]]
    if gone := [path for path in inputs if not path.exists()]:
        yield (
            f"{name}: no pictures of {len(gone)} cases, whose CTs are not where run.json says, as "
            f"{gone[0]}: make the report in the folder in which they were predicted."
        )
    failures = [*(metrics or {}).get("failures", [])]
    failures += [failure for record in records for failure in record.get("failures", [])]
    for failure in failures:
        yield f"{name}, {failure['name']}: {failure['error']}"
    if missing := (metrics or {}).get("missing"):
        yield f"{name}: no prediction, which counts as the worst, of {', '.join(missing)}."
    if unknown := (metrics or {}).get("unreferenced"):
        yield f"{name}: predicted, but without reference: {', '.join(unknown)}."


def _distinct_names(folders: Sequence[Path]) -> list[str]:
    for depth in range(1, max(len(folder.parts) for folder in folders) + 1):
        names = ["/".join(folder.parts[-depth:]) for folder in folders]
        if len(set(names)) == len(names):
            break
    return names
