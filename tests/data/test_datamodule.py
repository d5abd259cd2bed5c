import gc
import multiprocessing
import os
import signal

import numpy as np
import psutil
import pytest
import torch

from pancreas_mtl.data.datamodule import PancreasDataModule, SamplingConfig, read_size, spread
from pancreas_mtl.data.preprocess import CacheEntry

NOWHERE = np.zeros((0, 3), np.int32)


def entries(folder, count, shape=(10, 12, 14)):
    made = []
    for index in range(count):
        path = folder / f"{index}.npy"
        np.save(path, np.full((2, *shape), index % 2, np.float16))
        made.append(CacheEntry(f"case{index}", path, shape, index % 3, True, 5, NOWHERE, NOWHERE))
    return made


def module(train, validation=(), **changes):
    settings = {"steps_per_epoch": 3, "workers": 0, "read_margin": 1.25} | changes
    return PancreasDataModule(
        train,
        validation,
        patch_size=(8, 8, 8),
        batch_size=2,
        seed=0,
        config=SamplingConfig(**settings),
    )


def test_a_batch_has_the_size_that_is_read(tmp_path):
    batches = list(module(entries(tmp_path, 4)).train_dataloader())
    assert len(batches) == 3
    assert batches[0].image.shape == batches[0].mask.shape == (2, 1, 10, 10, 10)
    assert len(batches[0].name) == 2
    assert batches[0].subtype.dtype == torch.int64


def test_workers_see_the_same_patches(tmp_path):
    made = entries(tmp_path, 4)
    alone, with_workers = module(made), module(made, workers=2)
    for a, b in zip(alone.train_dataloader(), with_workers.train_dataloader(), strict=True):
        assert a.name == b.name
        torch.testing.assert_close(a.seed, b.seed)


def test_signals_that_are_sent_to_all_processes_leave_the_workers_alone(tmp_path):
    batches = iter(module(entries(tmp_path, 4), workers=1, steps_per_epoch=9).train_dataloader())
    next(batches)
    (worker,) = multiprocessing.active_children()
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        os.kill(worker.pid, signum)
        next(batches)
    assert len(list(batches)) == 5


def test_validation_is_whole_cases_and_can_be_bounded(tmp_path):
    made = entries(tmp_path, 4)
    assert [tuple(b.name) for b in module([], made).val_dataloader()] == [
        (f"case{i}",) for i in range(4)
    ]
    bounded = module([], made, validation_cases=2).val_dataloader()
    assert [tuple(b.image.shape) for b in bounded] == [(1, 1, 10, 12, 14)] * 2


@pytest.mark.parametrize(("count", "limit", "kept"), [(9, 3, 3), (10, 4, 4), (2, 5, 2), (5, 0, 5)])
def test_bounded_validation_is_spread_over_all_cases(count, limit, kept):
    chosen = spread(count, limit)
    assert len(set(chosen)) == len(chosen) == kept
    assert set(chosen) <= set(range(count))
    assert np.diff([*chosen, count]).max() <= -(-count // kept)  # no long stretch is left out


@pytest.mark.parametrize("margin", [1.0, 1.2, 1.5])
def test_margin_is_even_so_that_centres_coincide(margin):
    for size, read in zip((8, 12, 64), read_size((8, 12, 64), margin), strict=True):
        assert (read - size) % 2 == 0
        assert size <= read <= size * margin + 1


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_cases(tmp_path):
    """200 cases of 4 MB, 40 epochs of 20 batches: far less is held than a tenth of them."""
    process = psutil.Process()
    held = {}
    for count in (20, 200):
        folder = tmp_path / str(count)
        folder.mkdir()
        loader = module(
            entries(folder, count, shape=(64, 128, 128)), steps_per_epoch=400
        ).train_dataloader()
        gc.collect()
        before = process.memory_full_info().uss
        for batch in loader:
            assert batch.image.shape[0] == 2
        held[count] = process.memory_full_info().uss - before
    assert held[200] - held[20] < 40e6
