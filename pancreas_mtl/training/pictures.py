"""Pictures of a run as it trains, written to its folder; the loggers show the same files.

`<name>/epoch0009.png` below the folder is what the loggers call `<name>`, so that one folder holds
the history of one picture.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytorch_lightning as pl
from matplotlib.figure import Figure
from matplotlib.image import imread
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loggers import Logger, TensorBoardLogger, WandbLogger

from pancreas_mtl.inference.pictures import mosaic, save_png
from pancreas_mtl.training.charts import confusion_chart, curves, reliability_chart
from pancreas_mtl.training.module import MultitaskModule
from pancreas_mtl.training.validation import Validated, ValidationCase, with_subtype
from pancreas_mtl.types import UNKNOWN, Batch, Intensity, TripleMm


@dataclass(frozen=True)
class PictureConfig:
    """How often, in epochs (0: never), and of how many validation cases, always the first ones."""

    every: int = 10
    cases: int = 4


class Pictures(Callback):
    """Draws a few validation cases, the confusion matrix and the reliability diagram.

    At the first validation, and then at the first one that is `every` epochs after the last. With
    several processes, rank 0 draws the first cases of its own share.

    Args:
        run_dir: gets `pictures/`; the curves in it are those of `metrics.csv` beside it.
        config: how often, and how many cases.
    """

    def __init__(self, run_dir: Path, config: PictureConfig) -> None:
        self.folder = run_dir / "pictures"
        self.history = run_dir / "metrics.csv"
        self.config = config
        self.last_epoch: int | None = None
        self.drawn: dict[str, Path] = {}

    def on_validation_batch_end(  # type: ignore[override]
        self,
        trainer: pl.Trainer,
        pl_module: MultitaskModule,
        outputs: Validated,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Draw one case, if it is among the first."""
        if self._is_due(trainer) and batch_idx < self.config.cases:
            plan = pl_module.plan
            figure = overlay(outputs, batch, plan.intensity, plan.spacing_mm)
            self._save(figure, f"overlay/{outputs.case.name}", trainer)

    def on_validation_end(  # type: ignore[override]
        self, trainer: pl.Trainer, pl_module: MultitaskModule
    ) -> None:
        """Draw the charts, and show everything to the loggers."""
        if not self._is_due(trainer):
            return
        references, probabilities = with_subtype(pl_module.validated)
        if len(references):
            matrix = confusion_chart(references, probabilities.argmax(1))
            self._save(matrix, "chart/confusion_matrix", trainer)
            self._save(reliability_chart(references, probabilities), "chart/reliability", trainer)
        if self.history.exists():
            save_png(curves(self.history), self.folder / "curves.png")
        step = trainer.global_step - 1  # the last one, under which Lightning logs the epoch
        show(trainer.loggers, self.drawn, step)
        self.drawn = {}
        self.last_epoch = trainer.current_epoch

    def state_dict(self) -> dict[str, Any]:
        """When the last pictures were drawn."""
        return {"last_epoch": self.last_epoch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on after them."""
        self.last_epoch = state_dict["last_epoch"]

    def _is_due(self, trainer: pl.Trainer) -> bool:
        if self.config.every == 0 or not trainer.is_global_zero:
            return False
        return self.last_epoch is None or (
            trainer.current_epoch - self.last_epoch >= self.config.every
        )

    def _save(self, figure: Figure, name: str, trainer: pl.Trainer) -> None:
        path = self.folder / name / f"epoch{trainer.current_epoch:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        save_png(figure, path)
        self.drawn[name] = path


def overlay(outputs: Validated, batch: Batch, intensity: Intensity, spacing_mm: TripleMm) -> Figure:
    """One validated case (a batch of 1), at the plan's spacing, in three planes."""
    mask = batch.mask[0, 0].cpu().numpy()
    return mosaic(
        (batch.image[0, 0].float() * intensity.std_hu + intensity.mean_hu).cpu().numpy(),
        outputs.labels.cpu().numpy().astype(np.uint8),
        spacing_mm,
        reference=None if (mask == UNKNOWN).any() else mask.astype(np.uint8),
        title=_title(outputs.case),
    )


def show(loggers: Sequence[Logger], pictures: Mapping[str, Path], step: int) -> None:
    """Send PNG files to every logger that takes pictures, under their names."""
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            import wandb  # only where it is asked for: it reports to its makers

            images = {name: wandb.Image(str(png)) for name, png in pictures.items()}
            logger.log_metrics(cast("dict[str, float]", images), step)
        elif isinstance(logger, TensorBoardLogger):
            for name, png in pictures.items():
                logger.experiment.add_image(name, imread(png), step, dataformats="HWC")


def _title(case: ValidationCase) -> str:
    parts = [case.name]
    if case.whole_pancreas_dsc is not None:
        parts.append(f"DSC whole {case.whole_pancreas_dsc:.3f}   lesion {case.lesion_dsc:.3f}")
    if case.subtype is not None:
        predicted = int(np.argmax(case.probabilities))
        sure = f"{case.probabilities[predicted]:.2f}"
        parts.append(f"subtype {case.subtype}, predicted {predicted} ({sure})")
    return "   ".join(parts)
