"""The checkpoint from which an interrupted training goes on, if need be within an epoch."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins.io import TorchCheckpointIO
from pytorch_lightning.callbacks import Checkpoint, EarlyStopping, ModelCheckpoint

from pancreas_mtl.data.files import atomic_path, remove_leftovers
from pancreas_mtl.interruption import Interrupted, note_signals

EVERY_S = 300.0


class LastCheckpoint(Checkpoint):
    """Writes `last.ckpt` and stops the training where a signal asks for it.

    Written at the end of every epoch, after a step once `every_s` have passed, before the last step
    of an epoch, so that an interrupted validation costs one step, and after the step in which a
    signal came. All ranks stop after the same step, whichever of them heard the signal. Training
    then raises `Interrupted`, one hook later, when the loggers have the step.

    Args:
        path: the file.
        every_s: time after which a step is followed by a checkpoint.
        clock: seconds that only grow.
    """

    def __init__(
        self,
        path: Path,
        *,
        every_s: float = EVERY_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.path = path
        self.every_s = every_s
        self.clock = clock
        self._signals: list[int] = []
        self._stopping = False
        self._written_s = 0.0
        self._handlers = ExitStack()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Listen from now on, instead of Lightning's own handlers, which come after `setup`."""
        self._handlers.close()
        self._signals = self._handlers.enter_context(note_signals())
        self._written_s = self.clock()

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Write when it is time; never after an epoch's last step, which its validation follows."""
        done = batch_idx + 1
        left = int(trainer.num_training_batches) - done
        if left == 0 or done % trainer.accumulate_grad_batches:
            return
        due = left == 1 or self.clock() - self._written_s >= self.every_s
        self._stopping = _any_rank(trainer, bool(self._signals))
        if self._stopping or _any_rank(trainer, due):
            self._write(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write what the epoch and its validation have led to."""
        self._stopping = _any_rank(trainer, bool(self._signals))
        self._write(trainer)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Stop, with the checkpoint of the step before."""
        self._stop()

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop, with the checkpoint of the epoch before."""
        self._stop()

    def on_validation_batch_start(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Stop, with the checkpoint from before the epoch's last step; several ranks go on."""
        self._stopping = bool(self._signals) and trainer.world_size == 1
        self._stop()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The last occasion to stop."""
        self._stop()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Give the signals back."""
        self._handlers.close()

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Give the signals back."""
        self._handlers.close()

    def _write(self, trainer: pl.Trainer) -> None:
        for logger in trainer.loggers:
            logger.save()  # what training will not repeat; the points of this very step come later
        trainer.save_checkpoint(self.path, weights_only=False)
        self._written_s = self.clock()

    def _stop(self) -> None:
        if self._stopping:
            raise Interrupted(self._signals[0] if self._signals else 15)


class MovableCheckpoint(ModelCheckpoint):
    """The best checkpoint, still known as such after its run's folder was moved."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with what was best, now in this folder."""
        here = str(self.dirpath)

        def moved(path: str) -> str:
            return str(Path(here, Path(path).name)) if path else path

        keys = ("best_model_path", "kth_best_model_path", "last_model_path")
        paths = {key: moved(state_dict[key]) for key in keys}
        best = {moved(path): score for path, score in state_dict["best_k_models"].items()}
        super().load_state_dict({**state_dict, **paths, "dirpath": here, "best_k_models": best})


class ResumableEarlyStopping(EarlyStopping):
    """Early stopping that has not forgotten, after a resume, that it had already stopped.

    The patience is the configuration's, not the checkpoint's, so a run can go on with more of it.
    """

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take everything but the patience."""
        super().load_state_dict({**state_dict, "patience": self.patience})

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop at once where the patience was exhausted before."""
        if self.wait_count >= self.patience:
            trainer.should_stop = True


class AtomicCheckpointIO(TorchCheckpointIO):
    """Checkpoints that are there whole or not at all, whenever the process or machine dies."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None
    ) -> None:
        """Write beside the file, flush to the disk, rename.

        Raises:
            CaseError: the disk is full, or the folder cannot be written to.
        """
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(target.parent)
        with atomic_path(target) as temporary, temporary.open("wb") as file:
            try:
                torch.save(checkpoint, file)
            except RuntimeError as error:  # of torch's writer, in the place of the file's own
                raise OSError(error.__context__ or error) from error


def _any_rank(trainer: pl.Trainer, mine: bool) -> bool:
    return bool(trainer.strategy.reduce_boolean_decision(mine, all=False))
