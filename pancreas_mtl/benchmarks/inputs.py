"""Cases of the quiz's sizes, made of phantoms, and the quiz's plan."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from pancreas_mtl.data.phantom import make_phantom
from pancreas_mtl.data.resample import resample, resample_labels, target_shape
from pancreas_mtl.types import Intensity, Plan, Triple, TripleMm

QUIZ_PLAN = Plan(
    spacing_mm=(2.0, 0.732, 0.732),
    patch_size=(64, 128, 192),
    batch_size=2,
    channels=(32, 64, 128, 256, 320, 320),
    kernels=((1, 3, 3), *[(3, 3, 3)] * 5),
    strides=((1, 1, 1), (1, 2, 2), *[(2, 2, 2)] * 4),
    intensity=Intensity(mean_hu=74.0, std_hu=44.0, low_hu=-56.0, high_hu=180.0),
)
TINY_PLAN = replace(
    QUIZ_PLAN,
    spacing_mm=(4.0, 3.0, 3.0),
    patch_size=(16, 32, 48),
    channels=(4, 8, 8),
    kernels=QUIZ_PLAN.kernels[:3],
    strides=QUIZ_PLAN.strides[:3],
)
Size = tuple[Triple, TripleMm]
# One, two and four windows at the quiz's plan: 2.33 on average.
QUIZ_SIZES: tuple[Size, ...] = (
    ((63, 119, 179), (2.0, 0.73, 0.73)),
    ((49, 150, 179), (2.5, 0.7, 0.7)),
    ((60, 136, 200), (2.0, 0.78, 0.78)),
)
LARGEST: Size = ((244, 272, 459), (0.7, 0.6, 0.6))
TINY_SIZES: tuple[Size, ...] = (((20, 24, 28), (3.0, 3.0, 3.0)), ((15, 40, 30), (4.0, 3.0, 3.0)))


def plan_from(values: dict[str, Any]) -> Plan:
    """A plan that has been JSON."""
    kernels, strides = (tuple(map(tuple, values[key])) for key in ("kernels", "strides"))
    return Plan(
        spacing_mm=tuple(values["spacing_mm"]),
        patch_size=tuple(values["patch_size"]),
        batch_size=values["batch_size"],
        channels=tuple(values["channels"]),
        kernels=kernels,
        strides=strides,
        intensity=Intensity(**values["intensity"]),
    )


def write_cases(folder: Path, sizes: Sequence[Size], *, small: bool = False) -> list[str]:
    """Write phantoms stretched to these shapes: `images/<name>_0000.nii.gz`, `masks/<name>...`.

    What is there already stays, unless it has other shapes.
    """
    contents = folder / "sizes.json"
    if not contents.exists() or contents.read_text() != json.dumps(sizes):
        shutil.rmtree(folder, ignore_errors=True)
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    names = [f"case{index}" for index in range(len(sizes))]
    for index, (name, (shape, spacing_mm)) in enumerate(zip(names, sizes, strict=True)):
        image_path = folder / "images" / f"{name}_0000.nii.gz"
        if image_path.exists():
            continue
        case = make_phantom(0, index, difficulty="hard", size="small" if small else "full")
        labels = resample_labels(case.labels, shape, orders=(1, 1, 1))
        image = resample(case.image_hu.astype(np.float32), shape, orders=(1, 1, 1))
        _write(folder / "masks" / f"{name}.nii.gz", labels, spacing_mm)
        _write(image_path, image.round().astype(np.int16), spacing_mm)
    contents.write_text(json.dumps(sizes))
    return names


def windows(size: Size, plan: Plan) -> int:
    """How many windows nnU-Net needs, which pads to the full patch and goes by half of it."""
    shape, spacing_mm = size
    counts = [
        math.ceil(max(0, n - k) / (k / 2)) + 1
        for n, k in zip(
            target_shape(shape, spacing_mm, plan.spacing_mm), plan.patch_size, strict=True
        )
    ]
    return math.prod(counts)


def _write(path: Path, array: np.ndarray, spacing_mm: TripleMm) -> None:
    affine = np.diag([-spacing_mm[2], -spacing_mm[1], spacing_mm[0], 1.0])  # stored as LPS
    nib.save(nib.Nifti1Image(array.transpose(2, 1, 0), affine), path)
