"""Faults of the machine during training end it in one line with cause and remedy."""

import os
import signal
import time

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from pancreas_mtl.data import datamodule
from pancreas_mtl.data.datamodule import PancreasDataModule, SamplingConfig
from pancreas_mtl.data.preprocess import CacheEntry
from pancreas_mtl.errors import TrainingError
from pancreas_mtl.training.faults import faults_explained


class Faulty(Dataset):
    """Loads nothing: dies, stalls or finds no memory."""

    def __init__(self, fault):
        self.fault = fault

    def __len__(self):
        return 4

    def __getitem__(self, index):
        if self.fault == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        elif self.fault == "stalled":
            time.sleep(60)
        raise {"defect": RuntimeError}.get(self.fault, MemoryError)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("killed", r"a process that loads patches was killed .*: free memory, or lower sampling.w"),
        (
            "stalled",
            r"no batch came in time \(DataLoader timed out .*: check the disk of pa",
        ),
        ("no memory", r"memory ran out \(.*free it or lower sampling.workers, and go on by resume"),
    ],
)
def test_a_loaders_faults(fault, message):
    loader = DataLoader(Faulty(fault), num_workers=1, timeout=1 if fault == "stalled" else 60)
    with pytest.raises(TrainingError, match=message), faults_explained():
        next(iter(loader))


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            torch.cuda.OutOfMemoryError("CUDA out of memory."),
            r"memory of the GPU ran out .*: free",
        ),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "lower plan.batch_size"),
        (MemoryError(), r"memory ran out \(MemoryError\): free it"),
    ],
)
def test_a_lack_of_memory(error, message):
    with pytest.raises(TrainingError, match=message), faults_explained():
        raise error


@pytest.mark.slow
def test_a_defect_stays_one():
    with pytest.raises(RuntimeError, match="Caught RuntimeError in DataLoader"), faults_explained():
        next(iter(DataLoader(Faulty("defect"), num_workers=1)))


@pytest.mark.parametrize("workers", [0, 1])
def test_training_does_not_wait_for_ever(tmp_path, monkeypatch, workers):
    nowhere = np.zeros((0, 3), np.int32)
    entry = CacheEntry("a", tmp_path / "a.npy", (8, 8, 8), 0, True, 0, nowhere, nowhere)
    data = PancreasDataModule(
        [entry],
        [],
        patch_size=(8, 8, 8),
        batch_size=2,
        seed=0,
        config=SamplingConfig(workers=workers),
    )
    expected = datamodule.LOADER_TIMEOUT_S if workers else 0
    assert data.train_dataloader().timeout == expected
    assert 60 <= datamodule.LOADER_TIMEOUT_S <= 3600
