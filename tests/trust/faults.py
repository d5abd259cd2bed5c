"""What the tests of this folder share: predictions, small CTs, a full disk."""

from __future__ import annotations

import contextlib
import json
import resource
from pathlib import Path
from typing import NamedTuple

import nibabel as nib
import numpy as np
import torch
from commands import Finished, call

from pancreas_mtl.inference.bundle import save_bundle
from pancreas_mtl.models.network import MultitaskUNet, NetworkConfig
from pancreas_mtl.types import Intensity, Plan

AFFINE = np.diag([-1.5, -2.0, 4.0, 1.0])
MODEL = {"head": "lesion", "stages": [0, 1], "hidden": 8, "dropout": 0.0, "detach_head": False}
PLAN = Plan(
    spacing_mm=(4.0, 2.0, 1.5),
    patch_size=(8, 16, 16),
    batch_size=2,
    channels=(4, 4, 4),
    kernels=((1, 3, 3), (3, 3, 3), (3, 3, 3)),
    strides=((1, 1, 1), (1, 2, 2), (2, 2, 2)),
    intensity=Intensity(mean_hu=60.0, std_hu=50.0, low_hu=-100.0, high_hu=250.0),
)


class Predicted(NamedTuple):
    finished: Finished
    folder: Path

    @property
    def record(self) -> dict:
        return json.loads((self.folder / "run.json").read_text(encoding="utf-8"))

    @property
    def failures(self) -> dict[str, str]:
        return {failure["name"]: failure["error"] for failure in self.record["failures"]}

    @property
    def cases(self) -> dict[str, dict]:
        return {case["name"]: case for case in self.record["cases"]}


def predict(bundle: Path, source: Path, folder: Path, *more: str) -> Predicted:
    options = ("preset=single", "device=cpu", "precision=fp32", *more)
    quoted = [f"{key}='{path}'" for key, path in (("input", source), ("output_dir", folder))]
    return Predicted(call("predict", f"model={bundle}", *quoted, *options), folder)


def write_bundle(folder: Path, plan: Plan = PLAN) -> Path:
    torch.manual_seed(0)
    network = MultitaskUNet(plan, NetworkConfig(**{**MODEL, "stages": (0, 1)}))
    save_bundle(folder, network.state_dict(), plan, {"model": MODEL})
    return folder


def ct(shape=(10, 9, 6), seed=0) -> np.ndarray:
    """Voxels (i, j, k) with air, fat and soft tissue, so that no check doubts them."""
    return np.random.default_rng(seed).choice([-900, -100, 40, 90], shape).astype(np.int16)


def save_ct(path: Path, array=None, affine=AFFINE, header=None, klass=nib.Nifti1Image) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    array = ct() if array is None else array
    nib.save(klass(array, affine, header, dtype=array.dtype), path)
    return path


def content(folder: Path) -> dict[str, bytes]:
    """Every file below a folder with its bytes."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@contextlib.contextmanager
def largest_file(size: int):
    """No file of this process may grow beyond `size` bytes, as on a disk that is full."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
