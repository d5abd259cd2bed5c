"""What happens beside training: the history file, and the watch for collapse to one class."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

from pancreas_mtl.data.files import write_csv

log = logging.getLogger(__name__)


class History(Callback):
    """Writes `metrics.csv`: one row per epoch, every logged scalar a column, `epoch` the first.

    An epoch that was not validated has nothing in the columns of validation.
    The rows are part of the checkpoint's state, so a resumed run goes on without gaps or doubles.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[dict[str, float]] = []
        self._validated = False

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The epoch that is about to end has scores of its own."""
        self._validated = not trainer.sanity_checking

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Add a row and write the file anew."""
        if trainer.sanity_checking:
            return
        row = {"epoch": float(trainer.current_epoch), "step": float(trainer.global_step)}
        for name, value in trainer.callback_metrics.items():  # which keeps the last validation's
            if not name.endswith("_step") and (self._validated or not name.startswith("val/")):
                row[name.removesuffix("_epoch")] = float(value)
        self._validated = False
        self.rows = [*(r for r in self.rows if r["epoch"] < row["epoch"]), row]
        if trainer.is_global_zero:
            self._write()

    def _write(self) -> None:
        columns = list(dict.fromkeys(key for row in self.rows for key in row))
        rows = [[f"{row[key]:.6g}" if key in row else "" for key in columns] for row in self.rows]
        write_csv(self.path, columns, rows)

    def state_dict(self) -> dict[str, Any]:
        """The rows so far."""
        return {"rows": self.rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on after them."""
        self.rows = list(state_dict["rows"])


class LastValidation(Callback):
    """Validates after the last epoch, whichever it is, so that none is trained in vain."""

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """At every batch, since a training may be resumed at any."""
        if trainer.current_epoch + 1 == trainer.max_epochs:
            trainer.check_val_every_n_epoch = 1


class CollapseDetector(Callback):
    """Warns when validation predicts one subtype for every case, several times in a row.

    Logged as `val/collapsed`, 0 or 1.
    """

    def __init__(self, *, patience: int = 3) -> None:
        self.patience = patience
        self.epochs = 0

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Count the validations in a row in which one class was predicted."""
        classes = trainer.callback_metrics.get("val/classes_predicted")
        if classes is None:
            return
        self.epochs = self.epochs + 1 if classes <= 1 else 0
        if self.epochs == self.patience:
            log.warning(
                "the classifier has predicted one subtype for every case, %d validations in a row: "
                "raise optimizer.head_lr, or try sampling.balanced=true or model.detach_head=false",
                self.epochs,
            )

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log the verdict on the last validation."""
        pl_module.log("val/collapsed", float(self.epochs >= self.patience))

    def state_dict(self) -> dict[str, Any]:
        """The epochs counted so far."""
        return {"epochs": self.epochs}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on counting."""
        self.epochs = int(state_dict["epochs"])
