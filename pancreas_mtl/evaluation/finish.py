"""The end of a training: its validation cases in full, calibration, scores, pictures, report."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from pytorch_lightning.loggers import Logger

from pancreas_mtl.evaluation.boards import draw_results, log_results
from pancreas_mtl.evaluation.evaluate import evaluate
from pancreas_mtl.evaluation.held_out import calibrate, predict_held_out
from pancreas_mtl.evaluation.references import Reference
from pancreas_mtl.evaluation.report import write_report
from pancreas_mtl.evaluation.results import write_metrics
from pancreas_mtl.evaluation.table import render_table
from pancreas_mtl.evaluation.task import Task
from pancreas_mtl.inference.bundle import save_card
from pancreas_mtl.inference.calibration import save_calibration
from pancreas_mtl.inference.card import Origin
from pancreas_mtl.types import Case


def finish_run(
    run_dir: Path,
    validation: Sequence[Case],
    *,
    task: Task,
    origin: Origin,
    workers: int,
    loggers: Sequence[Logger],
    step: int,
) -> None:
    """Predict the cases with the run's bundle, calibrate it on them, evaluate, draw and report.

    Ends with the table of the results, and says where they are.

    Args:
        run_dir: holds `bundle/`.
        validation: the fold's validation cases.
        task: what counts as good.
        origin: what the model was trained on, for its card.
        workers: processes that evaluate and draw.
        loggers: are told the result.
        step: of the training, for the loggers.
    """
    bundle, oof, calibrated = (run_dir / name for name in ("bundle", "oof", "validation"))
    references = [Reference(case.name, case.mask, case.subtype) for case in validation]
    predict_held_out(bundle, validation, oof)
    fitted = calibrate(oof, references, calibrated, coverage=task.coverage, workers=workers)
    save_calibration(bundle, fitted)
    metrics = evaluate(calibrated, references, task=task, workers=workers)
    write_metrics(metrics, run_dir / "metrics.json")
    save_card(bundle, origin=origin, metrics=metrics.as_json())
    draw_results(metrics, run_dir, references, workers=workers)
    log_results(loggers, metrics, run_dir, step=step)
    page = write_report([run_dir], run_dir, workers=workers)
    print("validation cases, by which the checkpoint was chosen and its probabilities calibrated:")
    print(render_table(metrics, artefacts=[bundle, page], colour=sys.stdout.isatty()), end="")
