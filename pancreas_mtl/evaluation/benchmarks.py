"""Paired timings: two ways of the same work, in turn, with a check that their results agree."""

from __future__ import annotations

import gc
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from scipy import ndimage
from torch.utils.data import DataLoader

from pancreas_mtl.data.patches import PatchDataset, PatchSampler
from pancreas_mtl.data.preprocess import CacheEntry
from pancreas_mtl.data.resample import resample
from pancreas_mtl.inference.engines import TorchEngine, cpu_has_bf16
from pancreas_mtl.models.network import MultitaskUNet, NetworkConfig
from pancreas_mtl.types import Intensity, Plan, Triple

QUIZ_SHAPE: Triple = (63, 119, 179)  # the median crop of the quiz, and where its plan brings it
QUIZ_TARGET: Triple = (59, 117, 180)


@dataclass(frozen=True)
class Comparison:
    """`ratio` is the median over pairs of `before_s / after_s`; `difference` the largest."""

    name: str
    before: str
    after: str
    before_s: float
    after_s: float
    ratio: float
    difference: float

    def line(self) -> str:
        """One line for the terminal."""
        return (
            f"{self.name}: {self.before} {self.before_s:.3f} s, {self.after} {self.after_s:.3f} s, "
            f"{self.ratio:.1f} times faster, largest difference {self.difference:.2g}"
        )


def compare(
    name: str,
    before: tuple[str, Callable[[], Any]],
    after: tuple[str, Callable[[], Any]],
    *,
    pairs: int,
) -> Comparison:
    """Time A B A B ... after a warm-up of each; medians, and the ratio pair by pair."""
    (before_name, run_before), (after_name, run_after) = before, after
    difference = float(np.abs(np.asarray(run_before()) - np.asarray(run_after())).max())
    times = np.array([[_seconds(run_before), _seconds(run_after)] for _ in range(pairs)])
    before_s, after_s = np.median(times, axis=0)
    ratio = float(np.median(times[:, 0] / times[:, 1]))
    return Comparison(name, before_name, after_name, before_s, after_s, ratio, difference)


def _seconds(run: Callable[[], Any]) -> float:
    start_s = time.perf_counter()
    run()
    return time.perf_counter() - start_s


def resampling(*, pairs: int) -> Comparison:
    """The third-order resampling of one median crop: scipy's zoom against a matrix per axis."""
    image = np.random.default_rng(0).normal(size=QUIZ_SHAPE).astype(np.float32)
    zoom = np.array(QUIZ_TARGET) / QUIZ_SHAPE
    return compare(
        "resampling, order 3",
        ("scipy", lambda: ndimage.zoom(image, zoom, order=3, mode="nearest", grid_mode=True)),
        ("matrices", lambda: resample(image, QUIZ_TARGET, orders=(3, 3, 3))),
        pairs=pairs,
    )


def precision(*, pairs: int) -> Comparison:
    """One window of the quiz's plan with random weights: fp32 against the automatic precision."""
    torch.manual_seed(0)
    plan = Plan(
        spacing_mm=(2.0, 0.732, 0.732),
        patch_size=(64, 128, 192),
        batch_size=2,
        channels=(32, 64, 128, 256, 320, 320),
        kernels=((1, 3, 3), *[(3, 3, 3)] * 5),
        strides=((1, 1, 1), (1, 2, 2), *[(2, 2, 2)] * 4),
        intensity=Intensity(0.0, 1.0, -1.0, 1.0),
    )
    network = MultitaskUNet(plan, NetworkConfig())
    image = torch.randn(1, 1, *plan.patch_size)
    full = TorchEngine(network, device="cpu", precision="fp32")
    fast = TorchEngine(network, device="cpu", precision="bf16" if cpu_has_bf16() else "fp32")
    return compare(
        "one 64 x 128 x 192 window on the CPU, probabilities",
        ("fp32", lambda: full(image)[0].softmax(1)),
        (fast.precision, lambda: fast(image)[0].softmax(1)),
        pairs=pairs,
    )


@dataclass(frozen=True)
class Loading:
    """Reading 64 x 128 x 128 patches of so many cases through the loader of training."""

    cases: int
    seconds_per_patch: float
    held_mb: float  # memory of this process alone that was not held before

    def line(self) -> str:
        """One line for the terminal."""
        return (
            f"loading, {self.cases} cases: {self.seconds_per_patch * 1e3:.1f} ms a patch, "
            f"{self.held_mb:.1f} MB more held at the end"
        )


def loading(cases: int, *, steps: int) -> Loading:
    """Read `steps` batches of two patches from `cases` cached cases of 2 million voxels."""
    shape: Triple = (64, 128, 256)
    with tempfile.TemporaryDirectory() as folder:
        nowhere = np.zeros((0, 3), np.int32)
        entries = []
        for index in range(cases):
            path = Path(folder, f"{index}.npy")
            np.save(path, np.full((2, *shape), index % 2, np.float16))
            entries.append(CacheEntry(path.stem, path, shape, 0, True, 1, nowhere, nowhere))
        sampler = PatchSampler(entries, batch_size=2, steps=steps, seed=0)
        loader = DataLoader(PatchDataset(entries, read_size=(64, 128, 128)), batch_sampler=sampler)
        gc.collect()
        before = psutil.Process().memory_full_info().uss
        seconds = _seconds(lambda: [None for _ in loader])
        held = psutil.Process().memory_full_info().uss - before
    return Loading(cases, seconds / (2 * steps), held / 1e6)
