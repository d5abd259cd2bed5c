"""Preprocessing of a case, and patches for training: reading, cropping, augmenting, on one core."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from pancreas_mtl.benchmarks.inference import Sides
from pancreas_mtl.benchmarks.inputs import Size, write_cases
from pancreas_mtl.benchmarks.pairs import in_turn, row, write_result
from pancreas_mtl.benchmarks.side import Side
from pancreas_mtl.data.augment import AugmentConfig
from pancreas_mtl.types import Plan


def benchmark_data(
    sides: Sides,
    plan: Plan,
    sizes: Sequence[Size],
    *,
    augment: AugmentConfig,
    batches: int,
    pairs: int,
    small: bool,
) -> str:
    """Time both on the same cases, compare the resampled images, write `data.json`."""
    work = sides.work
    names = write_cases(work / "cases", sizes, small=small)
    with ExitStack() as stack:
        both = {
            "stock": stack.enter_context(sides.stock()),
            "ours": stack.enter_context(sides.ours()),
        }
        _preprocess(both, work, names[:1], plan, "warm")
        rounds, difference = _preprocess(both, work, names, plan, "preprocessed")
        settings: dict[str, dict[str, Any]] = {"stock": {}, "ours": {"augment": asdict(augment)}}
        for key, side in both.items():
            folder = str(work / f"preprocessed_{key}")
            side.ask("open_patches", folder=folder, plan=asdict(plan), **settings[key])
        asked = {key: _reading(side, batches) for key, side in both.items()}
        _, patches = in_turn(asked, pairs=pairs)
    count = batches * plan.batch_size
    rates = {key: [count / one["seconds"] for one in patches[key]] for key in patches}
    rows = [
        row(
            "preprocessing a case, from files to cache",
            rounds["stock"],
            rounds["ours"],
            note=f"largest difference of the images {difference:.1e}",
        ),
        row(
            f"augmented patches of {' x '.join(map(str, plan.patch_size))} per second and core",
            rates["stock"],
            rates["ours"],
            unit="/s",
            more_is_better=True,
        ),
    ]
    answers = {"preprocess_s": rounds, "patches": patches}
    return write_result(work / "data.json", rows, {"difference": difference}, answers)


def _preprocess(
    sides: Mapping[str, Side], work: Path, names: Sequence[str], plan: Plan, part: str
) -> tuple[dict[str, list[float]], float]:
    """Seconds of each side per case, in turn, and the largest difference of the images."""
    seconds: dict[str, list[float]] = {key: [] for key in sides}
    difference = 0.0
    for key in sides:  # ours would take the cases of a benchmark before from its cache
        shutil.rmtree(work / f"{part}_{key}", ignore_errors=True)
    for name in names:
        images = {}
        for key, side in sides.items():
            answer = side.ask(
                "preprocess",
                image=str(work / "cases" / "images" / f"{name}_0000.nii.gz"),
                mask=str(work / "cases" / "masks" / f"{name}.nii.gz"),
                folder=str(work / f"{part}_{key}"),
                plan=asdict(plan),
            )
            seconds[key].append(answer["seconds"])
            if key == "stock":  # which keeps it compressed
                folder = str(work / f"{part}_stock")
                answer = side.ask("image_of", folder=folder, case=name)
            images[key] = np.load(answer["image"])
        difference = max(difference, _difference(images["stock"], images["ours"]))
    return seconds, difference


def _reading(side: Any, batches: int) -> Any:
    return lambda: side.ask("read_patches", batches=batches)


def _difference(stock: np.ndarray, ours: np.ndarray) -> float:
    """Largest difference, apart from the rounding of our cache to float16."""
    image = ours[0].astype(np.float32)
    return float(np.abs(stock.astype(np.float16).astype(np.float32) - image).max())
