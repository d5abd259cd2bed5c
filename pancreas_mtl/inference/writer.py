"""The files of a prediction folder: masks, the two CSV files, `run.json`.

Each finished case goes to a journal at once; the CSV files and `run.json` are made from it at the
end. So a prediction that was killed goes on where it stopped.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from pancreas_mtl.data.files import (
    UNREADABLE,
    make_folder,
    not_written,
    remove_leftovers,
    write_csv,
    write_json,
    write_text,
)
from pancreas_mtl.data.names import name_problem, to_cell
from pancreas_mtl.errors import UsageError
from pancreas_mtl.inference.maps import MAPS, PREVIEWS
from pancreas_mtl.inference.predictor import Predictor
from pancreas_mtl.inference.record import RECORD, read_prediction_record
from pancreas_mtl.types import NUM_SUBTYPES

JOURNAL = "journal.jsonl"
NO_SUBTYPES = "none: no model has a subtype head, so the column Subtype is empty"
TABLES = ("subtype_results.csv", "subtype_probabilities.csv", RECORD, JOURNAL)
ANSWERS = (  # of one case, by its name
    *("{}.nii.gz", "{}.seg.dcm", "{}.sr.dcm"),
    *(f"{folder}/{{}}.nii.gz" for folder in MAPS),
    f"{PREVIEWS}/{{}}.png",
)


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


def open_output(
    output_dir: Path, fingerprint: str, *, names: Sequence[str] = (), overwrite: bool
) -> list[CaseRecord]:
    """Make the folder ready; the cases that an interrupted run with this fingerprint finished.

    With `overwrite`, the answers of the run before go, so that none is taken for one of this run.
    Files that no prediction wrote are never touched.

    Args:
        output_dir: made if missing.
        fingerprint: of models and settings.
        names: of all cases that are to be predicted.
        overwrite: start anew where there is a prediction.

    Raises:
        UsageError: the folder holds a finished prediction, a started one of other models, or a file
            of another origin under the name of an answer; it cannot be made or written to.
    """
    journal = make_folder(output_dir) / JOURNAL
    refuse_other_records(output_dir)
    if (output_dir / RECORD).exists() and not overwrite:
        journal.unlink(missing_ok=True)  # of a process that was killed at its very end
        raise UsageError(
            f"output_dir={output_dir} holds a finished prediction; give another output_dir, or "
            "overwrite=true"
        )
    started = _read_journal(journal)
    if started is not None and started.fingerprint != fingerprint and not overwrite:
        raise UsageError(
            f"output_dir={output_dir} holds a started prediction with other models or settings; "
            "give another output_dir, or overwrite=true"
        )
    own = _names_of_run(output_dir) | (started.names if started else set())
    check_free(output_dir, set(names) - own)
    remove_leftovers(output_dir)
    if started is not None and not overwrite:
        return [record for record in started.records if record.error is None]
    _remove_answers(output_dir, own)
    header = {"fingerprint": fingerprint, "names": list(names)}
    write_text(journal, json.dumps(header) + "\n")
    return []


def append(output_dir: Path, record: CaseRecord) -> None:
    """Add one case to the journal, as a whole line or not at all.

    Raises:
        CaseError: the disk is full.
    """
    path = output_dir / JOURNAL
    size = path.stat().st_size
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(record)) + "\n")
    except OSError as error:
        os.truncate(path, size)
        raise not_written(path, error) from None


def discard(output_dir: Path, name: str) -> None:
    """Remove what is there of the answers to a case that failed."""
    for path in _answers(output_dir, {name}):
        path.unlink(missing_ok=True)


def close_output(output_dir: Path, records: Sequence[CaseRecord], facts: Mapping[str, Any]) -> None:
    """Write the CSV files and `run.json`, and drop the journal."""
    done = sorted((r for r in records if r.error is None), key=lambda r: r.name)
    known = [record for record in done if record.subtype_probabilities]
    sets = ["conformal_set"] if any(r.conformal_set is not None for r in known) else []
    write_csv(
        output_dir / "subtype_results.csv",
        ["Names", "Subtype"],
        ([_cell(r), _subtype(r.subtype_probabilities)] for r in done),
    )
    write_csv(
        output_dir / "subtype_probabilities.csv",
        ["Names", *(f"p{s}" for s in range(NUM_SUBTYPES)), *sets],
        ([_cell(r), *_shares(r), *([_set(r)] if sets else [])] for r in known),
    )
    failures = [{"name": r.name, "input": r.input, "error": r.error} for r in records if r.error]
    cases = [_without(asdict(r), "error", "subtype_probabilities", "conformal_set") for r in done]
    record = {"schema": 1, **facts, "cases": cases, "failures": failures}
    write_json(output_dir / RECORD, record)
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
        "ensemble_temperature": predictor.ensemble_temperature,
        "conformal_coverage": predictor.conformal_coverage,
        "subtypes": "given" if predictor.has_subtypes else NO_SUBTYPES,
    }


def _cell(record: CaseRecord) -> str:
    return to_cell(f"{record.name}.nii.gz")


def _subtype(probabilities: tuple[float, ...] | None) -> int | None:
    """The most probable subtype; None, an empty field, from a model without subtypes."""
    return probabilities.index(max(probabilities)) if probabilities else None


def _shares(record: CaseRecord) -> list[str]:
    """All digits of a float32, since calibration compares new cases with what is read from here."""
    return [f"{value:.9g}" for value in record.subtype_probabilities or ()]


def _set(record: CaseRecord) -> str:
    """Such as `0|2`; nothing for an empty set, and `-` where none could be made."""
    return "-" if record.conformal_set is None else "|".join(map(str, record.conformal_set))


def read_record(raw: Mapping[str, Any]) -> CaseRecord:
    """A record from what JSON made of it; a TypeError for anything else."""
    values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in raw.items()}
    return CaseRecord(**values)


class _Journal(NamedTuple):
    fingerprint: str
    names: set[str]  # of all cases that the run meant to predict
    records: list[CaseRecord]


def _read_journal(path: Path) -> _Journal | None:
    """The whole lines of a journal; None where there is none."""
    if not path.exists():
        return None
    first, *lines = path.read_text(encoding="utf-8", errors="replace").splitlines() or [""]
    records = [record for line in lines if (record := _parse(line))]
    try:
        header = json.loads(first)
        names = {*map(str, header["names"]), *(record.name for record in records)}
        return _Journal(str(header["fingerprint"]), names, records)
    except UNREADABLE:
        return _Journal("", {record.name for record in records}, records)


def _names_of_run(output_dir: Path) -> set[str]:
    """The cases of a finished prediction, none where there is none."""
    try:
        record = read_prediction_record(output_dir) or {"cases": [], "failures": []}
    except UsageError:  # damaged
        return set()
    return {str(case["name"]) for case in (*record["cases"], *record["failures"])}


def _answers(output_dir: Path, names: set[str]) -> list[Path]:
    """What there is of the answers to these cases; a name that leads elsewhere has none."""
    plain = sorted(name for name in names if not name_problem(name))
    paths = (output_dir / answer.format(name) for name in plain for answer in ANSWERS)
    return [path for path in paths if path.exists()]


def check_free(output_dir: Path, names: Collection[str]) -> None:
    """Refuse to answer where the name of an answer, or of a table, is taken.

    Raises:
        UsageError: there is a file under such a name.
    """
    is_ours = any((output_dir / name).exists() for name in (RECORD, JOURNAL))
    tables = [] if is_ours else [output_dir / name for name in TABLES]
    for path in (*_answers(output_dir, set(names)), *(one for one in tables if one.exists())):
        raise UsageError(
            f"output_dir={output_dir} holds {path.name}, which no prediction wrote; give another "
            "output_dir"
        )


def refuse_other_records(output_dir: Path) -> None:
    """Refuse a folder whose `run.json` is that of a training.

    Raises:
        UsageError: it is.
    """
    try:
        is_other = (output_dir / RECORD).exists() and read_prediction_record(output_dir) is None
    except UsageError:  # damaged, so of unknown origin
        return
    if is_other:
        raise UsageError(
            f"output_dir={output_dir} holds a {RECORD} that no prediction wrote; give another "
            "output_dir"
        )


def _remove_answers(output_dir: Path, names: set[str]) -> None:
    """Remove what a run before wrote, and nothing else."""
    tables = [output_dir / name for name in TABLES]
    for path in (*_answers(output_dir, names), *tables):
        path.unlink(missing_ok=True)


def _parse(line: str) -> CaseRecord | None:
    """A journal's line; None for one that was cut off."""
    try:
        return read_record(json.loads(line))
    except (ValueError, AttributeError, TypeError):
        return None


def _without(mapping: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in mapping.items() if key not in keys}
