"""What the loggers are told at the end of a run: scores, targets, a table of cases, the bundle.

The pictures are files below `pictures/final/` of the run's folder. The names are listed in
`docs/dashboards.md`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pytorch_lightning.loggers import Logger, TensorBoardLogger, WandbLogger

from pancreas_mtl.evaluation.overlays import draw_overlays
from pancreas_mtl.evaluation.references import Reference
from pancreas_mtl.evaluation.results import CaseResult, Metrics
from pancreas_mtl.evaluation.scoring import REGIONS
from pancreas_mtl.inference.pictures import save_png
from pancreas_mtl.training.charts import confusion_chart, curves, reliability_chart
from pancreas_mtl.training.pictures import show
from pancreas_mtl.types import NUM_SUBTYPES, UNKNOWN

MASK_SCORES = ("dsc", "nsd", "hd95_mm")
SUBTYPE_ESTIMATES = ("macro_f1", "balanced_accuracy", "auroc")
COLUMNS = (
    "name",
    *(f"{region}_dsc" for region in REGIONS),
    "lesion_nsd",
    "lesion_hd95_mm",
    "subtype",
    "subtype_predicted",
)
CHARTS = ("confusion_matrix", "reliability")


def draw_results(
    metrics: Metrics, run_dir: Path, references: Sequence[Reference], *, workers: int
) -> None:
    """Draw every validation case, the charts of its subtypes, and the curves of the run."""
    folder = run_dir / "pictures" / "final"
    draw_overlays(metrics, [run_dir / "validation"], references, folder, workers=workers)
    known = [case for case in metrics.cases if case.subtype is not None]
    truth = np.array([case.subtype for case in known])
    if any(case.subtype_predicted is not None for case in known):
        answers = [UNKNOWN if c.subtype_predicted is None else c.subtype_predicted for c in known]
        save_png(confusion_chart(truth, np.array(answers)), folder / "confusion_matrix.png")
    sure = [case for case in known if case.subtype_probabilities is not None]
    if sure:
        figure = reliability_chart(
            np.array([case.subtype for case in sure]),
            np.array([case.subtype_probabilities for case in sure]),
        )
        save_png(figure, folder / "reliability.png")
    save_png(curves(run_dir / "metrics.csv"), run_dir / "pictures" / "curves.png")


def log_results(loggers: Sequence[Logger], metrics: Metrics, run_dir: Path, *, step: int) -> None:
    """Tell every logger how the run ended; pictures are those that `draw_results` has left."""
    folder = run_dir / "pictures" / "final"
    charts = {f"final/{name}": folder / f"{name}.png" for name in CHARTS}
    charts = {name: png for name, png in charts.items() if png.exists()}
    show(loggers, charts, step)
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            _to_wandb(logger.experiment, metrics, run_dir, folder)
        elif isinstance(logger, TensorBoardLogger):
            _to_tensorboard(logger, metrics, run_dir, folder, step)


def summary(metrics: Metrics) -> dict[str, float]:
    """The scores under `final/`; the targets, and 1 or 0 for met or not, under `target/`."""
    values: dict[str, float | None] = {}
    for region in REGIONS:
        scores = getattr(metrics, region)
        values |= {f"final/{region}_{key}": getattr(scores, key).mean for key in MASK_SCORES}
    values |= {f"final/{key}": getattr(metrics.subtype, key).mean for key in SUBTYPE_ESTIMATES}
    values |= {f"final/{key}": getattr(metrics.subtype, key) for key in ("ece", "brier")}
    values |= {f"final/f1_subtype{one.subtype}": one.f1 for one in metrics.subtype.per_class}
    for target in metrics.targets:
        values[f"target/{target.name}"] = target.target
        values[f"target/{target.name}_met"] = None if target.met is None else float(target.met)
    return {name: value for name, value in values.items() if value is not None}


def _to_wandb(run: Any, metrics: Metrics, run_dir: Path, folder: Path) -> None:
    header = [*COLUMNS, *(f"p{subtype}" for subtype in range(NUM_SUBTYPES)), "picture"]
    import wandb  # only where it is asked for: it reports to its makers

    table = wandb.Table(columns=header)
    for case, png in _cases(metrics, folder):
        table.add_data(*_row(case), None if png is None else wandb.Image(str(png)))
    run.log({"final/cases": table})
    run.summary.update(summary(metrics))
    artifact = wandb.Artifact(f"bundle-{run.id}", type="model", metadata=summary(metrics))
    artifact.add_dir(str(run_dir / "bundle"))
    run.log_artifact(artifact)


def _to_tensorboard(
    logger: TensorBoardLogger, metrics: Metrics, run_dir: Path, folder: Path, step: int
) -> None:
    logger.log_metrics(summary(metrics), step)
    header = [*COLUMNS, *(f"p{subtype}" for subtype in range(NUM_SUBTYPES))]
    lines = [header, ["---"] * len(header)]
    lines += [[_text(value) for value in _row(case)] for case in metrics.cases]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    logger.experiment.add_text("final/cases", table, step)
    config = (run_dir / "config.yaml").read_text()
    logger.experiment.add_text("config", f"```\n{config}\n```", step)
    pictures = {f"final/{case.name}": png for case, png in _cases(metrics, folder) if png}
    show([logger], pictures, step)


def _cases(metrics: Metrics, folder: Path) -> Iterator[tuple[CaseResult, Path | None]]:
    """The cases with their pictures, None where one could not be drawn."""
    for case in metrics.cases:
        png = folder / f"{case.name}.png"
        yield case, png if png.exists() else None


def _row(case: CaseResult) -> list[Any]:
    values = case.as_json()
    probabilities = case.subtype_probabilities or (None,) * NUM_SUBTYPES
    return [*(values[column] for column in COLUMNS), *probabilities]


def _text(value: Any) -> str:
    return "" if value is None else f"{value:.3f}" if isinstance(value, float) else str(value)
