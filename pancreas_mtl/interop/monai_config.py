"""The two configurations of an exported MONAI bundle.

MONAI evaluates strings that begin with `$` and `@`; nothing that came with the model gets there as
a string but the head's name, which is one of the built-in ones.
"""

from __future__ import annotations

from dataclasses import asdict, fields
from importlib.metadata import version
from typing import Any

import monai
import numpy as np
import torch

from pancreas_mtl.data.preprocess import IMAGE_ORDER
from pancreas_mtl.inference.bundle import Bundle
from pancreas_mtl.inference.predictor import PRESETS
from pancreas_mtl.models.network import NetworkConfig
from pancreas_mtl.types import NUM_LABELS, NUM_SUBTYPES, Label

_PARTS = "scripts.interop.monai_parts"


def inference_config(bundle: Bundle) -> dict[str, Any]:
    """`configs/inference.json`: from the folder `dataset_dir` to masks and a table of subtypes."""
    return {
        "imports": ["$import glob", "$import torch"],
        "bundle_root": ".",
        "dataset_dir": "$@bundle_root + '/input'",
        "output_dir": "$@bundle_root + '/output'",
        "datalist": "$[{'image': f} for f in sorted(glob.glob(@dataset_dir + '/*.nii*'))]",
        "device": "$torch.device('cuda' if torch.cuda.is_available() else 'cpu')",
        "network_def": {
            "_target_": f"{_PARTS}.multitask_network",
            "plan": asdict(bundle.plan),
            "model": _model(bundle),
        },
        "network": "$@network_def.to(@device)",
        "preprocessing": {"_target_": "Compose", "transforms": _preprocessing(bundle)},
        "dataset": {
            "_target_": "Dataset",
            "data": "@datalist",
            "transform": "@preprocessing",
        },
        "dataloader": {"_target_": "DataLoader", "dataset": "@dataset", "batch_size": 1},
        "inferer": _inferer(bundle),
        "postprocessing": {"_target_": "Compose", "transforms": _postprocessing(bundle)},
        "handlers": [_weights()],
        "evaluator": _evaluator(),
        "run": ["$@evaluator.run()"],
    }


def _weights() -> dict[str, Any]:
    return {
        "_target_": "CheckpointLoader",
        "load_path": "$@bundle_root + '/models/model.pt'",
        "load_dict": {"model": "@network"},
        "map_location": "@device",
    }


def _evaluator() -> dict[str, Any]:
    return {
        "_target_": "SupervisedEvaluator",
        "device": "@device",
        "val_data_loader": "@dataloader",
        "network": "@network",
        "inferer": "@inferer",
        "postprocessing": "@postprocessing",
        "val_handlers": "@handlers",
    }


def _model(bundle: Bundle) -> dict[str, Any]:
    """The `NetworkConfig`, each value of the type that it must have."""
    given, values = bundle.config["model"], {}
    for one in fields(NetworkConfig):
        kind: Any = type(one.default)
        value = given.get(one.name, one.default)
        values[one.name] = [int(stage) for stage in value] if kind is tuple else kind(value)
    return values


def _preprocessing(bundle: Bundle) -> list[dict[str, Any]]:
    intensity = bundle.plan.intensity
    low, high = (
        (hu - intensity.mean_hu) / intensity.std_hu for hu in (intensity.low_hu, intensity.high_hu)
    )
    return [
        {"_target_": "LoadImaged", "keys": "image", "ensure_channel_first": True},
        {"_target_": "Orientationd", "keys": "image", "axcodes": "SPL", "labels": None},
        {
            "_target_": "ScaleIntensityRanged",
            "keys": "image",
            "a_min": intensity.low_hu,
            "a_max": intensity.high_hu,
            "b_min": low,
            "b_max": high,
            "clip": True,
        },
        {
            "_target_": f"{_PARTS}.ToSpacingd",
            "keys": "image",
            "spacing_mm": list(bundle.plan.spacing_mm),
            "order": IMAGE_ORDER,
        },
    ]


def _inferer(bundle: Bundle) -> dict[str, Any]:
    preset = PRESETS["accurate"]
    return {
        "_target_": f"{_PARTS}.MultitaskInferer",
        "patch_size": list(bundle.plan.patch_size),
        "step": preset.step,
        "mirror_axes": [axis for axis in preset.mirror_axes if axis in bundle.mirror_axes],
        "subtype_temperature": float(bundle.calibration.subtype_temperature),
    }


def _postprocessing(bundle: Bundle) -> list[dict[str, Any]]:
    return [
        {"_target_": "FlattenSubKeysd", "keys": "pred"},
        {
            "_target_": f"{_PARTS}.ToSourceGridd",
            "keys": "segmentation",
            "image_key": "image",
            "spacing_mm": list(bundle.plan.spacing_mm),
            "lesion_bias": float(bundle.calibration.lesion_bias),
            "largest_pancreas": bool(bundle.calibration.largest_pancreas),
            "largest_lesion": bool(bundle.calibration.largest_lesion),
        },
        {
            "_target_": "SaveImaged",
            "keys": "segmentation",
            "output_dir": "@output_dir",
            "output_postfix": "",
            "output_dtype": "uint8",
            "separate_folder": False,
            "resample": False,
            "output_name_formatter": {
                "_target_": f"{_PARTS}.case_filename",
                "_mode_": "callable",
            },
        },
        *([_save_subtype()] if bundle.network.has_subtype else []),
    ]


def _save_subtype() -> dict[str, Any]:
    return {
        "_target_": f"{_PARTS}.SaveSubtyped",
        "keys": "subtype",
        "image_key": "image",
        "output_dir": "@output_dir",
    }


def metadata(bundle: Bundle) -> dict[str, Any]:
    """`configs/metadata.json`, as MONAI's schema has it."""
    both = bundle.network.has_subtype
    return {
        "schema": "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/"
        "0.8.1/meta_schema_20240725.json",
        "version": version("pancreas-mtl"),
        "changelog": {version("pancreas-mtl"): f"export of bundle {bundle.digest}"},
        "monai_version": monai.__version__,
        "pytorch_version": torch.__version__.split("+")[0],
        "numpy_version": np.__version__,
        "required_packages_version": {
            name: version(name) for name in ("nibabel", "scipy", "fire", "pytorch-ignite")
        },
        "supported_apps": {},
        "name": "Pancreas, lesion and subtype" if both else "Pancreas and lesion",
        "task": "Segmentation of pancreas and lesion in CT" + ", and the lesion's subtype" * both,
        "description": f"One network with {'two answers' if both else 'one answer'}: see README.md "
        "and processing.json",
        "authors": "the authors of pancreas_mtl",
        "copyright": "Apache-2.0",
        "data_type": "nibabel",
        "image_classes": "CT in HU, a crop around the pancreas, portal-venous phase",
        "pred_classes": "labels 0 background, 1 pancreas, 2 lesion"
        + "; probabilities of subtypes 0-2" * both,
        "intended_use": "Research only: not a medical device, not for diagnosis or treatment",
        "network_data_format": _data_format(bundle),
    }


def _data_format(bundle: Bundle) -> dict[str, Any]:
    volume = {
        "type": "image",
        "spatial_shape": [str(n) for n in bundle.plan.patch_size],
        "dtype": "float32",
        "value_range": [],
        "is_patch_data": True,
    }
    image = {
        "format": "hounsfield",
        "modality": "CT",
        "num_channels": 1,
        "channel_def": {"0": "CT"},
    }
    segmentation = {
        "format": "segmentation",
        "num_channels": NUM_LABELS,
        "channel_def": {str(int(one)): one.name.lower() for one in Label},
    }
    subtype = {"subtype": _subtype_format()} if bundle.network.has_subtype else {}
    return {
        "inputs": {"image": volume | image},
        "outputs": {"segmentation": volume | segmentation, **subtype},
    }


def _subtype_format() -> dict[str, Any]:
    return {
        "type": "probabilities",
        "format": "classes",
        "num_channels": NUM_SUBTYPES,
        "spatial_shape": [],
        "dtype": "float32",
        "value_range": [0, 1],
        "is_patch_data": False,
        "channel_def": {str(s): f"subtype {s}" for s in range(NUM_SUBTYPES)},
    }
