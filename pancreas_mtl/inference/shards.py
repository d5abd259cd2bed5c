"""Work divided among processes that share nothing but a folder.

Each shard predicts into a folder of its own, `shards/<index>-of-<count>/`; whichever ends last puts
the parts together. So shards may run on any node, at any time, again and again.
"""

from __future__ import annotations

import csv
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pancreas_mtl.data.files import one_at_a_time, write_csv, write_json
from pancreas_mtl.errors import UsageError
from pancreas_mtl.inference.record import RECORD, read_prediction_record
from pancreas_mtl.inference.writer import CaseRecord, read_record, refuse_other_records

T = TypeVar("T")
FOLDER = "shards"


@dataclass(frozen=True)
class Shard:
    """Part `index` of `count`.

    Raises:
        UsageError: there is no such part.
    """

    index: int = 0
    count: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.index < self.count:
            raise UsageError(
                f"shard.index={self.index} shard.count={self.count}: the index runs from 0 to "
                "count - 1"
            )

    def take(self, items: Sequence[T]) -> list[T]:
        """Every `count`-th item from `index` on; every shard must be given the same items."""
        return list(items[self.index :: self.count])

    def folder(self, output_dir: Path) -> Path:
        """Where this part goes: the output folder itself where there is one part only."""
        if self.count == 1:
            return output_dir
        return output_dir / FOLDER / f"{self.index}-of-{self.count}"


def is_done(output_dir: Path, shard: Shard, fingerprint: str, *, overwrite: bool) -> bool:
    """Whether this part of a prediction is finished, so that there is nothing to do again.

    A prediction by one process is never taken for done: to begin it again is a mistake.

    Raises:
        UsageError: the part is to be overwritten, which the other shards would not know; or any
            part is finished, with another fingerprint of models and settings.
    """
    if shard.count == 1:
        return False
    refuse_other_records(output_dir)
    parts = [Shard(index, shard.count).folder(output_dir) for index in range(shard.count)]
    _check_same(_records([output_dir, *parts]), fingerprint)
    if not (is_complete(output_dir) or is_complete(shard.folder(output_dir))):
        return False
    if overwrite:
        raise UsageError(
            f"overwrite=true: remove {output_dir} by hand before it is predicted in shards again"
        )
    return True


def failures_of(output_dir: Path, shard: Shard) -> list[CaseRecord]:
    """What a finished part, or the whole if the parts are together, could not predict."""
    part = shard.folder(output_dir)
    [record] = _records([part if is_complete(part) else output_dir])
    return [read_record(failure) for failure in record["failures"]]


def _check_same(records: Sequence[dict[str, Any]], fingerprint: Any) -> None:
    if any(record.get("fingerprint") != fingerprint for record in records):
        raise UsageError(
            "output_dir holds shards with other models or settings: give another output_dir, or "
            "remove it by hand"
        )


def join_shards(output_dir: Path, count: int) -> bool:
    """Put the parts together if all are there; whether the prediction is complete."""
    if count == 1:
        return True
    with one_at_a_time(output_dir):
        if is_complete(output_dir):
            return True
        parts = [Shard(index, count).folder(output_dir) for index in range(count)]
        records = _records(parts)
        if len(records) < count:
            return False
        _check_same(records, records[0].get("fingerprint"))
        if len({record.get("sources") for record in records}) > 1:
            raise UsageError(
                f"input has changed between the shards: remove {output_dir / FOLDER} by hand, and "
                "predict again"
            )
        for name in {path.relative_to(part) for part in parts for path in part.rglob("*.csv")}:
            _join_tables([part / name for part in parts], output_dir / name)
        for part in parts:
            _move_answers(part, output_dir)
        write_json(output_dir / RECORD, _joined(records))
        shutil.rmtree(output_dir / FOLDER)
    return True


def is_complete(folder: Path) -> bool:
    """Whether the folder holds a complete prediction."""
    return (folder / RECORD).exists()


def _records(folders: Sequence[Path]) -> list[dict[str, Any]]:
    """What the complete ones say."""
    return [record for folder in folders if (record := read_prediction_record(folder))]


def _joined(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    cases = [case for record in records for case in record["cases"]]
    failures = [failure for record in records for failure in record["failures"]]
    return {
        **records[0],
        "shards": len(records),
        "cases": sorted(cases, key=lambda case: str(case["name"])),
        "failures": sorted(failures, key=lambda failure: str(failure["name"])),
    }


def _join_tables(parts: Sequence[Path], path: Path) -> None:
    header: list[str] = []
    rows: list[list[str]] = []
    for part in parts:
        if part.exists():
            with part.open(newline="", encoding="utf-8") as file:
                first, *more = csv.reader(file)
                header = max(header, first, key=len)  # a part without cases has fewer columns
                rows += more
    path.parent.mkdir(exist_ok=True)
    write_csv(path, header, sorted(rows))


def _move_answers(part: Path, output_dir: Path) -> None:
    """Move the files of the cases; what a join that was interrupted has moved is there already."""
    for path in sorted(part.rglob("*")):
        if path.is_file() and path.suffix != ".csv" and path != part / RECORD:
            target = output_dir / path.relative_to(part)
            target.parent.mkdir(exist_ok=True)
            os.replace(path, target)
