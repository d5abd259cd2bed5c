"""`run.json` of a prediction, as whoever finds one in a folder reads it.

A training's file has the same name, but no cases.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pancreas_mtl.data.files import UNREADABLE, reason
from pancreas_mtl.errors import UsageError

RECORD = "run.json"


def read_prediction_record(folder: Path) -> dict[str, Any] | None:
    """What the folder's `run.json` says; None where there is none, or that of a training.

    Each of its `cases` and `failures` has a `name` and an `input`.

    Raises:
        UsageError: it is damaged.
    """
    path = folder / RECORD
    if not path.exists():
        return None
    try:
        record: dict[str, Any] = {**json.loads(path.read_text(encoding="utf-8"))}
        for entry in (*record["cases"], *record["failures"]) if "cases" in record else ():
            _ = str(entry["name"]), Path(entry["input"])
        _ = float(record.get("conformal_coverage") or 0)
    except UNREADABLE as error:
        raise UsageError(
            f"{path} cannot be read ({reason(error)}): predict again, or remove it"
        ) from None
    return record if "cases" in record else None
