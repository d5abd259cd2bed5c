"""The files of a prediction folder: masks, the two CSV files, `run.json`.

Each finished case goes to a journal at once; the CSV files and `run.json` are made from it at the
end. So a prediction that was killed goes on where it stopped.
"""

from __future__ import annotations

import csv
import json
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pancreas_mtl.errors import UsageError
from pancreas_mtl.inference.maps import MAPS, PREVIEWS
from pancreas_mtl.inference.predictor import Predictor
from pancreas_mtl.types import NUM_SUBTYPES

JOURNAL = "journal.jsonl"
NO_SUBTYPES = "none: no model has a subtype head, so the column Subtype is empty"


@dataclass(frozen=True)
class CaseRecord:
    """What is known of one finished or failed case; `error` is None for a finished one."""

    name: str
    input: str
    subtype_probabilities: tuple[float, ...] | None = None
    mask_entropy: float | None = None
    conformal_set: tuple[int, ...] | None = None
    seconds: Mapping[str, float] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    error: str | None = None


def open_output(output_dir: Path, fingerprint: str, *, overwrite: bool) -> list[CaseRecord]:
    """Make the folder ready; the cases that an interrupted run with this fingerprint finished.

    To overwrite is to remove what an earlier run left of its cases, so that nothing stale is
    evaluated with the new ones.

    Raises:
        UsageError: the folder holds a finished prediction, or a started one of other models.
    """
    journal = output_dir / JOURNAL
    output_dir.mkdir(parents=True, exist_ok=True)
    if (output_dir / "run.json").exists() and not overwrite:
        raise UsageError(
            f"output_dir={output_dir} holds a finished prediction; give another output_dir, or "
            "overwrite=true"
        )
    if journal.exists() and not overwrite:
        first, *lines = journal.read_text().splitlines() or [""]
        if first != fingerprint:
            raise UsageError(
                f"output_dir={output_dir} holds a started prediction with other models or "
                "settings; give another output_dir, or overwrite=true"
            )
        return [record for line in lines if (record := _parse(line)) and record.error is None]
    _remove_cases(output_dir)
    (output_dir / "run.json").unlink(missing_ok=True)
    journal.write_text(fingerprint + "\n")
    return []


def _remove_cases(output_dir: Path) -> None:
    """Remove masks, maps and previews of the cases in `run.json` and in the journal."""
    names: set[str] = set()
    try:
        record = json.loads((output_dir / "run.json").read_text())
        names |= {case["name"] for case in record["cases"]}
    except (OSError, ValueError, KeyError, TypeError):
        pass  # none, or none of ours
    if (output_dir / JOURNAL).exists():
        lines = (output_dir / JOURNAL).read_text().splitlines()
        names |= {record.name for line in lines if (record := _parse(line))}
    for name in names:
        file = f"{Path(name).name}.nii.gz"
        for path in (output_dir / file, *(output_dir / folder / file for folder in MAPS)):
            path.unlink(missing_ok=True)
        (output_dir / PREVIEWS / f"{Path(name).name}.png").unlink(missing_ok=True)


def append(output_dir: Path, record: CaseRecord) -> None:
    """Add one case to the journal."""
    with (output_dir / JOURNAL).open("a") as file:
        file.write(json.dumps(asdict(record)) + "\n")


def close_output(output_dir: Path, records: Sequence[CaseRecord], facts: Mapping[str, Any]) -> None:
    """Write the CSV files and `run.json`, and drop the journal."""
    done = sorted((r for r in records if r.error is None), key=lambda r: r.name)
    known = [record for record in done if record.subtype_probabilities]
    sets = ["conformal_set"] if any(r.conformal_set is not None for r in known) else []
    _write_csv(
        output_dir / "subtype_results.csv",
        ["Names", "Subtype"],
        ([f"{r.name}.nii.gz", _subtype(r.subtype_probabilities)] for r in done),
    )
    _write_csv(
        output_dir / "subtype_probabilities.csv",
        ["Names", *(f"p{s}" for s in range(NUM_SUBTYPES)), *sets],
        ([f"{r.name}.nii.gz", *_shares(r), *([_set(r)] if sets else [])] for r in known),
    )
    failures = [{"name": r.name, "input": r.input, "error": r.error} for r in records if r.error]
    cases = [_without(asdict(r), "error", "subtype_probabilities", "conformal_set") for r in done]
    text = json.dumps({"schema": 1, **facts, "cases": cases, "failures": failures}, indent=1)
    _write_text(output_dir / "run.json", text + "\n")
    (output_dir / JOURNAL).unlink(missing_ok=True)


def run_facts(predictor: Predictor, config: Mapping[str, Any]) -> dict[str, Any]:
    """What `run.json` says of the program, the models and the machine."""
    return {
        "versions": {name: version(name) for name in ("pancreas-mtl", "torch", "monai")},
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "device": str(predictor.engines[0].device),
        "precision": predictor.engines[0].precision,
        "config": dict(config),
        "bundles": [bundle.digest for bundle in predictor.bundles],
        "subtypes": "given" if predictor.has_subtypes else NO_SUBTYPES,
    }


def _subtype(probabilities: tuple[float, ...] | None) -> int | None:
    """The most probable subtype; None, an empty field, from a model without subtypes."""
    return probabilities.index(max(probabilities)) if probabilities else None


def _shares(record: CaseRecord) -> list[str]:
    return [f"{value:.6f}" for value in record.subtype_probabilities or ()]


def _set(record: CaseRecord) -> str:
    return "|".join(map(str, record.conformal_set or ()))


def read_record(raw: Mapping[str, Any]) -> CaseRecord:
    """A record from what JSON made of it; a TypeError for anything else."""
    values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in raw.items()}
    return CaseRecord(**values)


def _parse(line: str) -> CaseRecord | None:
    """A journal's line; None for one that was cut off."""
    try:
        return read_record(json.loads(line))
    except (ValueError, AttributeError, TypeError):
        return None


def _without(mapping: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in mapping.items() if key not in keys}


def _write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)
    os.replace(temporary, path)


def _write_text(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text)
    os.replace(temporary, path)
