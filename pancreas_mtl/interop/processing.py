"""What a viewer or server must do around an exported network, as plain data for `processing.json`.

Every number is taken from the bundle or from the module that works with it, so that the file says
what `Predictor` does. `docs/examples/onnx_case.py` is a whole prediction written from the file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

from pancreas_mtl.data.preprocess import IMAGE_ORDER
from pancreas_mtl.data.resample import ANISOTROPY_THRESHOLD
from pancreas_mtl.inference.bundle import Bundle
from pancreas_mtl.inference.predictor import PRESETS
from pancreas_mtl.types import NUM_SUBTYPES, Label

SCHEMA = 1
FILE = "processing.json"
_CORNERS = (
    "per axis, corners of both grids aligned: centre i of n_out lies at (i + 0.5) * n_in / n_out - "
    "0.5, outside counts as the nearest voxel; n_out = max(1, round(n_in * old_mm / new_mm))"
)
_ANISOTROPIC = (
    "an axis is nearest neighbour where the old spacing, or else the new one, has max / min above "
    "anisotropy_threshold and that axis alone is the coarsest"
)


def processing(bundle: Bundle, *, files: Mapping[str, str], parity: Mapping[str, Any]) -> Any:
    """The content of `processing.json`.

    Args:
        bundle: what was exported.
        files: `window` and, with a subtype head, `classifier`: the files that hold the networks.
        parity: how far the export was found from torch, and the tolerance.
    """
    return {
        "schema": SCHEMA,
        "program": f"pancreas_mtl {version('pancreas-mtl')}",
        "bundle": bundle.digest,
        "intended_use": "research only: not a medical device, not for diagnosis or treatment",
        "image": {
            "modality": "CT",
            "unit": "HU",
            "axes": ["D", "H", "W"],
            "axcodes": "SPL",  # D runs towards Superior, H towards Posterior, W towards Left
            "content": "a crop around the pancreas, portal-venous phase",
        },
        "preprocessing": _preprocessing(bundle),
        "windows": _windows(bundle),
        "networks": _networks(bundle, files),
        "postprocessing": _postprocessing(bundle),
        "parity": dict(parity),
    }


def _preprocessing(bundle: Bundle) -> list[dict[str, Any]]:
    intensity = bundle.plan.intensity
    return [
        {"step": "reorient", "axcodes": "SPL"},
        {"step": "clip", "low_hu": intensity.low_hu, "high_hu": intensity.high_hu},
        {"step": "standardise", "mean_hu": intensity.mean_hu, "std_hu": intensity.std_hu},
        {
            "step": "resample",
            "spacing_mm": list(bundle.plan.spacing_mm),
            "spline_order": IMAGE_ORDER,
            "grid": _CORNERS,
            "anisotropy_threshold": ANISOTROPY_THRESHOLD,
            "anisotropic_axis": _ANISOTROPIC,
            "clip": "to the range of the input, slice by slice where an axis is nearest neighbour",
        },
    ]


def _windows(bundle: Bundle) -> dict[str, Any]:
    preset = PRESETS["accurate"]
    return {
        "patch_size": list(bundle.plan.patch_size),
        "padding": "centred with 0 up to the patch",
        "step": preset.step,
        "starts": "count = ceil((n - patch) / (patch * step)) + 1, evenly spread, rounded",
        "weight": "Gaussian with a sigma of patch / 8, one at the centre (index patch // 2)",
        "mirror_axes": [axis for axis in preset.mirror_axes if axis in bundle.mirror_axes],
        "views": "every subset of mirror_axes; without mirroring: faster, a little less accurate",
        "logits": "mean over views, mirrored back; weighted mean over windows",
        "evidence": "sums and weights add up over windows, apart for each view",
    }


def _networks(bundle: Bundle, files: Mapping[str, str]) -> dict[str, Any]:
    volume = ["batch", "channel", "D", "H", "W"]
    evidence = {name: {"axes": ["batch", "feature"]} for name in ("sums", "weights")}
    logits = {"logits": {"axes": volume, "channels": [label.name.lower() for label in Label]}}
    networks = {
        "window": {
            "file": files["window"],
            "inputs": {"image": {"axes": volume, "channels": ["CT"]}},
            "outputs": logits | (evidence if bundle.network.has_subtype else {}),
        }
    }
    if bundle.network.has_subtype:
        networks["classifier"] = {
            "file": files["classifier"],
            "inputs": evidence,
            "outputs": {"subtype": {"axes": ["view", "subtype"], "subtypes": NUM_SUBTYPES}},
        }
    return {"dtype": "float32", **networks}


def _postprocessing(bundle: Bundle) -> dict[str, Any]:
    return {
        "labels": {label.name.lower(): int(label) for label in Label},
        "mask": [
            {
                "step": "interpolate logits to the image's grid",
                "spline_order": 1,
                "grid": _CORNERS,
                "anisotropy_threshold": ANISOTROPY_THRESHOLD,
                "anisotropic_axis": _ANISOTROPIC,
            },
            {"step": "add lesion_bias to the channel of label 2"},
            {"step": "argmax over channels"},
            {
                "step": "keep the largest component, 26-connected",
                "largest_pancreas": "first: of labels 1 and 2 together; the rest becomes 0",
                "largest_lesion": "then: of label 2 in what is left; the rest becomes 1",
            },
            {"step": "reorient back to the file's axes"},
        ],
        "subtype": "softmax per view, mean over views, then p^(1 / T), normalised, with T = "
        "subtype_temperature",
        "conformal_set": "the subtypes s for which fewer than coverage * (n + 1) of the n values "
        "of conformity lie above s's probability before the temperature; none where n is 0",
        "calibration": {
            key: value
            for key, value in asdict(bundle.calibration).items()
            if key not in ("answers", "cases")  # of use to ensembles alone
        },
    }
