"""A bundle as a MONAI bundle that `python -m monai.bundle run` executes for inference.

    configs/inference.json  metadata.json    the workflow, and what it takes and gives
    models/model.pt                          the weights
    scripts/                                 the modules of this package that it needs, as they are
    processing.json                          the same in words of no framework

Its check is a run of the finished bundle, in a process of its own, on a made-up CT whose file has
another orientation and spacing than the plan, against `Predictor` on the same file.
"""

from __future__ import annotations

import ast
import csv
import json
import re
import shutil
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import fire  # noqa: F401  # without these two, monai.bundle does not run
import ignite  # noqa: F401
import monai
import nibabel as nib
import numpy as np
import numpy.typing as npt
import torch

from pancreas_mtl.data.images import read_image, read_mask
from pancreas_mtl.errors import CaseError
from pancreas_mtl.inference.bundle import Bundle
from pancreas_mtl.inference.predictor import Predictor
from pancreas_mtl.interop.monai_config import inference_config, metadata
from pancreas_mtl.interop.parity import TOLERANCE, refuse_above
from pancreas_mtl.types import NUM_SUBTYPES

FILES = {"window": "models/model.pt", "classifier": "models/model.pt"}
LABEL_TOLERANCE = 1e-3
"""Share of voxels that may get another label: two logits nearly equal, rounded elsewhere."""

_PACKAGE = Path(__file__).resolve().parents[1]
_PARTS = "interop/monai_parts.py"


def write_monai_bundle(bundle: Bundle, folder: Path) -> dict[str, Any]:
    """Write the bundle, run it and compare; how far it is off.

    Raises:
        CaseError: it does not run, or disagrees with `Predictor`.
    """
    for name in ("configs", "models"):
        (folder / name).mkdir()
    _write_json(folder / "configs" / "inference.json", inference_config(bundle))
    _write_json(folder / "configs" / "metadata.json", metadata(bundle))
    torch.save(bundle.network.state_dict(), folder / FILES["window"])
    copy_scripts(folder / "scripts")
    shutil.copyfile(_PACKAGE.parent / "LICENSE", folder / "LICENSE")
    return _check(bundle, folder)


def copy_scripts(folder: Path) -> None:
    """Copy the module of the bundle's parts, and all of the package that it imports."""
    for name in modules_needed(_PARTS):
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        text = (_PACKAGE / name).read_text()
        target.write_text(text.replace("from pancreas_mtl.", "from scripts."))
    for parent in {path.parent for path in folder.rglob("*.py")} | {folder}:
        (parent / "__init__.py").write_text("")


def modules_needed(name: str) -> list[str]:
    """The package's files that a file imports, itself among them, relative to the package."""
    needed, waiting = set(), [name]
    while waiting:
        current = waiting.pop()
        if current in needed:
            continue
        needed.add(current)
        for node in ast.walk(ast.parse((_PACKAGE / current).read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("pancreas_mtl."):
                waiting.append("/".join((node.module or "").split(".")[1:]) + ".py")
    return sorted(needed)


def run_inference(folder: Path, dataset_dir: Path, output_dir: Path) -> None:
    """Run a bundle on the CPU as a user would, in a process of its own."""
    command = [
        *(sys.executable, "-m", "monai.bundle", "run"),
        *("--config_file", "configs/inference.json", "--bundle_root", "."),
        *("--dataset_dir", str(dataset_dir), "--output_dir", str(output_dir)),
        *("--device", "cpu"),
    ]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if result.returncode:
        causes = re.findall(r"^\w[\w.]*(?:Error|Exception)\b.*", result.stderr, re.MULTILINE)
        cause = causes[0] if causes else result.stderr.strip()[-200:]
        raise CaseError(
            f"the exported bundle does not run ({' '.join(cause.split())}): try another monai"
        )


def _check(bundle: Bundle, folder: Path) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as temporary:
        images, output = Path(temporary, "in"), Path(temporary, "out")
        image = write_sample(bundle, images)
        run_inference(folder, images, output)
        volume = read_image(image)
        expected = Predictor([bundle], device="cpu", precision="fp32").predict(volume)
        mask = read_mask(output / "sample.nii.gz", grid=volume.source).array
        worst = {"labels": float((mask != expected.labels).mean())}
        refuse_above(worst, LABEL_TOLERANCE)
        if expected.subtype_probabilities is not None:
            found = _read_probabilities(output)
            worst["subtype"] = float(np.abs(found - expected.subtype_probabilities).max())
            refuse_above({"subtype": worst["subtype"]}, TOLERANCE)
    return {
        "runtime": f"monai {monai.__version__}",
        "reference": f"pancreas_mtl {version('pancreas-mtl')}, float32, CPU",
        "tolerance": {"labels": LABEL_TOLERANCE, "subtype": TOLERANCE},
        "largest_difference": worst,
        "measured_as": {"labels": "share of voxels", "subtype": "of probabilities"},
        "shapes": [list(volume.array.shape)],
    }


def _read_probabilities(folder: Path) -> npt.NDArray[np.float64]:
    with (folder / "subtype_probabilities.csv").open() as file:
        (row,) = csv.DictReader(file)
    return np.array([float(row[f"p{s}"]) for s in range(NUM_SUBTYPES)])


def write_sample(bundle: Bundle, folder: Path) -> Path:
    """A smooth random CT, a little longer than one window, in a file with axes of its own."""
    patch, spacing_mm = bundle.plan.patch_size, np.array(bundle.plan.spacing_mm)
    vox = np.array([patch[0] * 1.1, *(min(n, 40) for n in patch[1:])])  # at the plan's spacing
    own_mm = spacing_mm * (0.8, 1.25, 1.25)
    d, h, w = np.maximum(2, np.rint(vox * spacing_mm / own_mm)).astype(int)
    coarse = torch.randn(1, 1, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    smooth = torch.nn.functional.interpolate(coarse, (int(d), int(h), int(w)), mode="trilinear")
    intensity = bundle.plan.intensity
    hu = (smooth[0, 0] * intensity.std_hu + intensity.mean_hu).numpy()
    affine = np.zeros((4, 4))  # the file's axes run to the front, the right, the head
    affine[:, 3] = 20.0, -30.0, 40.0, 1.0
    affine[1, 0], affine[0, 1], affine[2, 2] = own_mm[1], own_mm[2], own_mm[0]
    array = hu[:, ::-1, ::-1].transpose(1, 2, 0)  # (D, H, W) of SPL to (A, R, S)
    folder.mkdir(parents=True)
    path = folder / "sample_0000.nii.gz"
    nib.save(nib.Nifti1Image(np.ascontiguousarray(array), affine), path)
    return path


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")
