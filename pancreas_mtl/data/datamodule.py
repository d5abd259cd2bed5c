"""Serves patches for training and whole cases for validation; augments on the training device."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, Subset

from pancreas_mtl.data.patches import CaseDataset, PatchDataset, PatchSampler
from pancreas_mtl.data.preprocess import CacheEntry
from pancreas_mtl.interruption import SIGNALS
from pancreas_mtl.types import Batch, Triple

LOADER_TIMEOUT_S = 1800.0  # without a batch, then training stops; reading one takes milliseconds


@dataclass(frozen=True)
class SamplingConfig:
    """How an epoch is drawn.

    `read_margin` is how much larger than the patch the loader reads, so that rotating and shrinking
    need no padding; `validation_cases` bounds the cases of a validation (0: all).
    """

    steps_per_epoch: int = 250
    lesion_share: float = 1 / 3
    balanced: bool = False
    read_margin: float = 1.2
    workers: int = 2
    validation_cases: int = 0


class Position(NamedTuple):
    """A place in the sequence of batches."""

    epoch: int = 0
    batches: int = 0


class PancreasDataModule(pl.LightningDataModule):
    """Loaders over cached cases.

    Args:
        train: entries to draw patches from.
        validation: entries to predict whole.
        patch_size: what augmentation returns.
        batch_size: patches per step and process.
        seed: of the run; with the epoch it decides every patch.
        config: how an epoch is drawn.
    """

    def __init__(
        self,
        train: Sequence[CacheEntry],
        validation: Sequence[CacheEntry],
        *,
        patch_size: Triple,
        batch_size: int,
        seed: int,
        config: SamplingConfig,
    ) -> None:
        super().__init__()
        self.train_entries = list(train)
        self.validation_entries = list(validation)
        self.patch_size = patch_size
        self.batch_size = batch_size
        self.seed = seed
        self.config = config
        self.position = Position()

    def state_dict(self) -> dict[str, int]:
        """Where a checkpoint stands: the epoch, and how many of its batches are done."""
        assert self.trainer is not None
        position = Position(self.trainer.current_epoch, self.trainer.fit_loop.batch_idx + 1)
        return position._asdict()

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Go on from there: the first batches of that epoch are not read again."""
        self.position = Position(**state_dict)

    def on_before_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """What is random in a step (dropout) follows from its patches, so a resume repeats it."""
        torch.manual_seed(int(batch.seed[0]))
        return batch

    def train_dataloader(self) -> DataLoader[Batch]:
        """Patches of one epoch; made anew each epoch, since the epoch decides what is drawn."""
        rank, world_size = self._rank()
        sampler = PatchSampler(
            self.train_entries,
            batch_size=self.batch_size,
            steps=self.config.steps_per_epoch,
            seed=self.seed,
            lesion_share=self.config.lesion_share,
            balanced=self.config.balanced,
            rank=rank,
            world_size=world_size,
        )
        epoch = self.trainer.current_epoch if self.trainer else 0
        first_batch = self.position.batches if epoch == self.position.epoch else 0
        sampler.set_epoch(epoch, first_batch=first_batch)
        size = read_size(self.patch_size, self.config.read_margin)
        return DataLoader(
            PatchDataset(self.train_entries, patch_size=self.patch_size, read_size=size),
            batch_sampler=sampler,
            num_workers=self.config.workers,
            pin_memory=self._on_gpu(),
            timeout=LOADER_TIMEOUT_S if self.config.workers else 0,
            worker_init_fn=_leave_signals_to_training,
        )

    def val_dataloader(self) -> DataLoader[Batch]:
        """Whole cases, one at a time; each process takes every world_size-th."""
        rank, world_size = self._rank()
        chosen = spread(len(self.validation_entries), self.config.validation_cases)
        mine = chosen[rank::world_size] or chosen[:1]  # no rank may have none; counted once
        cases = Subset(CaseDataset(self.validation_entries), mine)
        return DataLoader(cases, batch_size=1, num_workers=0, pin_memory=self._on_gpu())

    def _rank(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def _on_gpu(self) -> bool:
        return self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"


def spread(count: int, limit: int) -> list[int]:
    """At most `limit` of `count` indices, evenly spread; 0 is no limit.

    Cases are sorted by name, and names may begin with the subtype: the first few would all be of
    one.
    """
    kept = min(limit or count, count)
    return [index * count // kept for index in range(kept)]


def read_size(patch_size: Triple, margin: float) -> Triple:
    """The patch enlarged by `margin`, by an even number of voxels, so that centres coincide."""
    d, h, w = (n + 2 * round(n * (margin - 1) / 2) for n in patch_size)
    return d, h, w


def _leave_signals_to_training(worker: int) -> None:
    """Terminals and schedulers send them to all processes, and the last step needs its batch."""
    for signum in (*SIGNALS, signal.SIGINT):
        signal.signal(signum, signal.SIG_IGN)
