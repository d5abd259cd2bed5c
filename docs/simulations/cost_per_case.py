"""CPU seconds and bytes of preprocessing, per case: the ground of the estimates in docs/scaling.md.

python docs/simulations/cost_per_case.py [IMAGE MASK], whose case is measured as well
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import nibabel as nib
import numpy as np

from pancreas_mtl.data.checks import check_case
from pancreas_mtl.data.fingerprint import fingerprint_case
from pancreas_mtl.data.preprocess import cache_key, preprocess_case
from pancreas_mtl.types import Case, Intensity, Plan

SHAPES = {"crop of median size": (179, 119, 63), "larger field": (256, 256, 100)}
SPACING_MM = (0.8, 0.8, 2.5)
PLAN = Plan(
    spacing_mm=(2.0, 0.732, 0.732),
    patch_size=(64, 128, 192),
    batch_size=2,
    channels=(32,),
    kernels=((3, 3, 3),),
    strides=((1, 1, 1),),
    intensity=Intensity(74.0, 44.0, -56.0, 180.0),
)


def make_case(folder: Path, shape: tuple[int, int, int]) -> Case:
    rng = np.random.default_rng(0)
    hu = rng.normal(40, 20, shape).astype(np.int16)
    mask = np.zeros(shape, np.uint8)
    i, j, k = shape
    mask[i // 3 : 2 * i // 3, j // 3 : j // 2, k // 4 : 3 * k // 4] = 1
    mask[i // 2 : i // 2 + 15, j // 3 : j // 3 + 15, k // 2 : k // 2 + 6] = 2
    affine = np.diag([-SPACING_MM[0], -SPACING_MM[1], SPACING_MM[2], 1.0])
    nib.save(nib.Nifti1Image(hu, affine), folder / "a_0000.nii.gz")
    nib.save(nib.Nifti1Image(mask, affine), folder / "a.nii.gz")
    return Case("a", folder / "a_0000.nii.gz", folder / "a.nii.gz", 1)


def cpu_s(action) -> float:
    begin = time.process_time()
    action()
    return time.process_time() - begin


def measure(name: str, case: Case, cache: Path) -> None:
    raw = sum(path.stat().st_size for path in (case.image, case.mask))
    shape = nib.load(case.image).shape
    steps = {
        "audit": lambda: check_case(case),
        "fingerprint": lambda: fingerprint_case(case),
        "preprocess": lambda: preprocess_case(case, plan=PLAN, cache_dir=cache),
        "find again": lambda: preprocess_case(case, plan=PLAN, cache_dir=cache),
        "of which hashing": lambda: cache_key(case, PLAN),
    }
    seconds = {step: f"{step} {cpu_s(action):.3f}" for step, action in steps.items()}
    kept = sum(path.stat().st_size for path in cache.iterdir())
    sizes = f"{np.prod(shape) / 1e6:.2f} Mvoxel, raw {raw / 1e6:.1f} MB, cached {kept / 1e6:.1f} MB"
    print(f"{name}: {sizes}; CPU s: {', '.join(seconds.values())}")


def main() -> None:
    for name, shape in SHAPES.items():
        with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as cache:
            measure(name, make_case(Path(folder), shape), Path(cache))
    if paths := [Path(name) for name in sys.argv[1:]]:
        with tempfile.TemporaryDirectory() as cache:
            measure(paths[0].name, Case("real", *paths, 1), Path(cache))


if __name__ == "__main__":
    main()
