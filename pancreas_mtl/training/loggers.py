"""Loggers that survive an interruption: one run in Weights & Biases, and no step in it twice."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import WandbLogger
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from pancreas_mtl.data.files import write_json


class ResumableWandbLogger(WandbLogger):
    """Goes on with the run that the journal names, from where it had come.

    A resumed training repeats the steps since its checkpoint and computes the same values, which
    the run already has; they are left out, metric by metric.

    Args:
        journal: a file beside the run: its id, and the last step of every metric.
        options: of `WandbLogger`.
    """

    def __init__(self, journal: Path, **options: Any) -> None:
        self.journal = journal
        self.run_id, self.last_steps = _read(journal)
        super().__init__(id=self.run_id, **options)
        self._note()  # at once, so that a run that is killed before its first metric keeps its id

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Log what is new; noted first, so that a kill in between loses it and never doubles it."""
        if step is not None:
            metrics = {k: v for k, v in metrics.items() if step > self.last_steps.get(k, -1)}
            if not metrics:
                return
            self.last_steps |= dict.fromkeys(metrics, step)
            self._note()
        super().log_metrics(metrics, step)

    @rank_zero_only
    def _note(self) -> None:
        write_json(self.journal, {"id": self.run_id, "last_steps": self.last_steps})


def _read(journal: Path) -> tuple[str, dict[str, int]]:
    try:
        facts = json.loads(journal.read_text())
        return facts["id"], facts["last_steps"]
    except (OSError, ValueError, KeyError):
        return os.environ.get("WANDB_RUN_ID", uuid.uuid4().hex[:8]), {}  # an agent's, in a sweep
