"""What a training tells its user: how far it is, and how long it will take."""

from __future__ import annotations

import logging
import time
import warnings
from contextlib import ExitStack
from datetime import timedelta
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback, TQDMProgressBar
from tqdm.contrib.logging import logging_redirect_tqdm

log = logging.getLogger(__name__)

LOG_EVERY_S = 60.0
NOISE = (
    r".*your dataloader is not resumable.*",  # the data module knows its place
    r".*isinstance\(treespec, LeafSpec\).*",  # Lightning's own use of torch
)
BAR = {
    "train/segmentation_step": "seg",
    "train/subtype_step": "sub",
    "val/whole_pancreas_dsc": "whole",
    "val/lesion_dsc": "lesion",
    "val/macro_f1": "f1",
}
"""Names of metrics behind the bar: the loss's parts, DSC of both regions, macro-F1."""
SHOWN = ("score", "whole_pancreas_dsc", "lesion_dsc", "macro_f1")


def quiet_lightning() -> None:
    """Leave Lightning's warnings that matter, and drop its hints and advertisements."""
    for name in ("pytorch_lightning", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in NOISE:
        warnings.filterwarnings("ignore", message=message)


class Clock:
    """Estimates what is left of a training from the pace of this process so far."""

    def __init__(self) -> None:
        self.start_s = time.monotonic()
        self.start_step: int | None = None

    def left(self, trainer: pl.Trainer) -> str:
        """The time to the last epoch, `h:mm:ss`, validations included; "?" before the first step.

        Early stopping may end it sooner.
        """
        step = trainer.global_step
        if self.start_step is None:
            self.start_step, self.start_s = step, time.monotonic()
        done = step - self.start_step
        total = trainer.estimated_stepping_batches
        if done < 1 or total == float("inf"):
            return "?"
        seconds = (time.monotonic() - self.start_s) / done * (total - step)
        return str(timedelta(seconds=round(seconds)))


class ProgressBar(TQDMProgressBar):
    """Lightning's bar of one epoch, with the time that is left of all of them.

    While it stands, log lines go above it.
    """

    def __init__(self) -> None:
        super().__init__(refresh_rate=5)
        self.clock = Clock()
        self.log_above = ExitStack()

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Let log lines make room for the bar."""
        super().setup(trainer, pl_module, stage)
        self.log_above.enter_context(logging_redirect_tqdm())

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """The bar is gone."""
        self.log_above.close()

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """The bar stands still."""
        self.log_above.close()

    def get_metrics(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, Any]:
        """What stands behind the bar: BAR's metrics, so that they fit, and the time left."""
        known = super().get_metrics(trainer, pl_module)
        shown = {short: known[name] for name, short in BAR.items() if name in known}
        return {**shown, "left": self.clock.left(trainer)}


class ProgressLog(Callback):
    """A log line after each validation, and in long epochs every LOG_EVERY_S seconds."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.last_s = time.monotonic()

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Say how far the epoch is, if nothing was said for long."""
        left = self.clock.left(trainer)
        if time.monotonic() - self.last_s >= LOG_EVERY_S:
            metrics = trainer.callback_metrics
            loss = float(metrics.get("train/loss_step", float("nan")))
            where = f"step {batch_idx + 1} of {trainer.num_training_batches}"
            self._say(trainer, f"{where}, loss {loss:.3f}", left)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Say how good it is."""
        metrics = trainer.callback_metrics
        scores = [f"{n} {metrics[f'val/{n}']:.3f}" for n in SHOWN if f"val/{n}" in metrics]
        self._say(trainer, ", ".join(scores), self.clock.left(trainer))

    def _say(self, trainer: pl.Trainer, what: str, left: str) -> None:
        self.last_s = time.monotonic()
        if trainer.is_global_zero:
            epoch = f"{trainer.current_epoch + 1} of {trainer.max_epochs}"
            log.info("epoch %s: %s; at most %s left", epoch, what, left)
