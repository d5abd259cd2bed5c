"""What an evaluation compares: prediction folders with references, or the folds of one variant."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pancreas_mtl.errors import UsageError
from pancreas_mtl.evaluation.cross_validation import cross_validate
from pancreas_mtl.evaluation.references import Reference, read_references
from pancreas_mtl.evaluation.task import Task


def find_inputs(
    options: dict[str, Any], output_dir: Path, *, task: Task, workers: int
) -> tuple[list[Path], list[Reference]]:
    """Predictions and references as `conf/evaluate.yaml` names them.

    With `runs`, their out-of-fold cases are calibrated on the way, into `output_dir`.

    Raises:
        UsageError: neither or both are given, or a folder does not fit.
    """
    predictions, runs = _paths(options["predictions"]), _paths(options["runs"])
    references = options["references"]
    if runs and not (predictions or references):
        partial = options["missing"] == "skip"
        folder, known = cross_validate(
            runs, output_dir, coverage=task.coverage, partial=partial, workers=workers
        )
        return [folder], known
    if runs or not predictions or not references:
        raise UsageError("give predictions=DIR and references=DIR, or runs=[DIR,...] of all folds")
    return predictions, read_references(Path(references))


def _paths(given: Any) -> list[Path]:
    return [Path(one) for one in (given if isinstance(given, list) else [given]) if one]
