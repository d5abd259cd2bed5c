"""Reads back what an offline wandb run has written: a log in LevelDB's format of protobuf records.

The format: https://github.com/google/leveldb/blob/main/doc/log_format.md, with seven bytes of
wandb's own in front. wandb 0.31 has no public reader.
"""

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from wandb.proto.wandb_internal_pb2 import Record

BLOCK, HEADER = 32768, 7
FULL, FIRST, _MIDDLE, LAST = 1, 2, 3, 4


@dataclass
class OfflineRun:
    """The content of a run: history row by row, the last summary, configuration, artifacts."""

    id: str = ""
    name: str = ""
    group: str = ""
    tags: list = field(default_factory=list)
    config: dict = field(default_factory=dict)
    history: list = field(default_factory=list)
    summary: dict = field(default_factory=dict)
    artifacts: list = field(default_factory=list)
    exit_code: int | None = None

    def curve(self, name: str) -> list[tuple[float, float]]:
        """The `(trainer/global_step, value)` pairs of one name."""
        return [(row["trainer/global_step"], row[name]) for row in self.history if name in row]


def read_runs(folder: Path) -> list[OfflineRun]:
    """Read every `offline-run-*` in a run's `wandb/`: one for each time it was started."""
    return [_read_run(path) for path in sorted(folder.glob("offline-run-*/*.wandb"))]


def _read_run(path: Path) -> OfflineRun:
    run = OfflineRun()
    for data in _records(path.read_bytes()):
        record = Record()
        record.ParseFromString(data)
        kind = record.WhichOneof("record_type")
        if kind == "run":
            run.id = record.run.run_id
            run.name, run.group = record.run.display_name, record.run.run_group
            run.tags = list(record.run.tags)
            run.config |= _values(record.run.config.update)
        elif kind == "history":
            run.history.append(_values(record.history.item))
        elif kind == "summary":
            run.summary |= _values(record.summary.update)
        elif kind == "artifact":
            run.artifacts.append(record.artifact)
        elif kind == "exit":
            run.exit_code = record.exit.exit_code
    return run


def _values(items) -> dict:
    return {
        "/".join(item.nested_key) if item.nested_key else item.key: json.loads(item.value_json)
        for item in items
    }


def _records(data: bytes) -> Iterator[bytes]:
    assert data[:4] == b":W&B"
    at, parts = HEADER, b""
    while at + HEADER <= len(data):
        room = BLOCK - at % BLOCK
        if room < HEADER:
            at += room
            continue
        _checksum, length, kind = struct.unpack("<IHB", data[at : at + HEADER])
        if kind == 0:  # the rest of the block is empty
            at += room
            continue
        parts += data[at + HEADER : at + HEADER + length]
        at += HEADER + length
        if kind in (FULL, LAST):
            yield parts
            parts = b""
