"""What nnU-Net's `plans.json` and `dataset.json` say of prediction, as a plan of ours.

Whatever nnU-Net would do that this project's predictor does not is refused with its name, so that
an imported model answers as nnU-Net would, or is not imported.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pancreas_mtl.data.plan import out_of_bounds
from pancreas_mtl.errors import UsageError
from pancreas_mtl.types import NUM_LABELS, Intensity, Plan, Triple

T = TypeVar("T")
READERS = ("SimpleITKIO", "NibabelIO")  # both give (D, H, W) in the file's own order


@dataclass(frozen=True)
class NnunetPlan:
    """A plan in this project's axes.

    `transpose_forward` is nnU-Net's: its axis a is the image's axis `transpose_forward[a]`.
    """

    plan: Plan
    transpose_forward: Triple


def in_image_order(per_axis: Sequence[T], transpose_forward: Triple) -> tuple[T, T, T]:
    """Values of nnU-Net's three axes as (D, H, W)."""
    d, h, w = (per_axis[transpose_forward.index(axis)] for axis in range(3))
    return d, h, w


def read_plan(model_folder: Path, configuration: str) -> NnunetPlan:
    """The plan of one configuration in the folder of a trained nnU-Net model.

    Raises:
        UsageError: a file is missing or malformed, or the model does what is not done here.
    """
    path = model_folder / "plans.json"
    plans = _read_json(path)
    try:
        _check_dataset(_read_json(model_folder / "dataset.json"), model_folder / "dataset.json")
        settings = _resolve(plans["configurations"], configuration)
        _check_configuration(settings, plans, path)
        found = _plan(settings, plans)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, RecursionError) as error:
        raise UsageError(
            f"{path}: not the plans of an nnU-Net v2 model ({error!r}); give the folder that "
            "nnU-Net trained into"
        ) from None
    if bad := out_of_bounds(found.plan):
        raise UsageError(f"{path}: {bad}; plan again with nnU-Net's default planner")
    return found


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(
            f"{path}: not found; model_folder is the one that holds plans.json, dataset.json and "
            "fold_0, such as nnUNetTrainer__nnUNetPlans__3d_fullres"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{path}: not readable as JSON ({error}); copy it again") from None


def _check_dataset(dataset: Mapping[str, Any], path: Path) -> None:
    channels = dataset.get("channel_names", dataset.get("modality"))
    if channels is None or len(channels) != 1:
        raise UsageError(f"{path}: channels {channels}; only models of one CT channel fit here")
    labels = dataset["labels"]
    values = list(labels.values())
    if sorted(map(str, values)) != [str(label) for label in range(NUM_LABELS)]:
        raise UsageError(
            f"{path}: labels {labels}; a model here has 0 background, 1 pancreas and 2 lesion, "
            "neither regions nor an ignored label"
        )


def _resolve(configurations: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A configuration with what it inherits."""
    own = configurations[name]
    parent = own.get("inherits_from")
    return {**_resolve(configurations, parent), **own} if parent else dict(own)


def _check_configuration(settings: Mapping[str, Any], plans: Mapping[str, Any], path: Path) -> None:
    """Refuse what this project's predictor does otherwise."""
    data, scores = (
        settings.get(f"resampling_fn_{of}_kwargs", {}) for of in ("data", "probabilities")
    )
    default = "resample_data_or_seg_to_shape"
    expected = {
        "patch_size of a 3D network": (len(settings["patch_size"]), 3),
        "previous_stage": (settings.get("previous_stage"), None),
        "normalization_schemes": (list(settings["normalization_schemes"]), ["CTNormalization"]),
        "use_mask_for_norm": (list(settings["use_mask_for_norm"]), [False]),
        "preprocessor_name": (settings["preprocessor_name"], "DefaultPreprocessor"),
        "resampling_fn_data": (settings["resampling_fn_data"], default),
        "resampling_fn_probabilities": (settings["resampling_fn_probabilities"], default),
        "resampling of images": (_orders(data), (3, 0, None)),
        "resampling of scores": (_orders(scores), (1, 0, None)),
    }
    for key, (value, needed) in expected.items():
        if value != needed:
            raise UsageError(f"{path}: {key} is {value}; only {needed} gives the same result here")
    if plans["image_reader_writer"] not in READERS:
        reader = plans["image_reader_writer"]
        raise UsageError(f"{path}: images read by {reader}; only {' or '.join(READERS)} fit here")
    _check_architecture(settings, path)


def _orders(resampling: Mapping[str, Any]) -> tuple[Any, Any, Any]:
    """Spline order, order along an anisotropic axis, and whether that axis is forced apart."""
    return resampling["order"], resampling["order_z"], resampling["force_separate_z"]


def _check_architecture(settings: Mapping[str, Any], path: Path) -> None:
    name = _class_name(settings)
    if name.startswith("ResidualEncoder"):
        raise UsageError(
            f"{path}: {name} cannot be imported: its encoder adds skip connections around blocks, "
            "which the plain U-Net here has no place for, so no choice of weights gives the same "
            "answer; train with nnU-Net's default planner (PlainConvUNet) instead"
        )
    if name != "PlainConvUNet":
        raise UsageError(f"{path}: network {name}; only PlainConvUNet can be imported")
    network = _architecture(settings)
    stages = len(network["features_per_stage"])
    nonlinearity = network.get("nonlin_kwargs") or {}
    expected = {
        "n_conv_per_stage": (_per_stage(network["n_conv_per_stage"], stages), [2] * stages),
        "n_conv_per_stage_decoder": (
            _per_stage(network["n_conv_per_stage_decoder"], stages - 1),
            [2] * (stages - 1),
        ),
        "norm_op": (network["norm_op"].rpartition(".")[2], "InstanceNorm3d"),
        "norm_op_kwargs": (network["norm_op_kwargs"], {"eps": 1e-5, "affine": True}),
        "nonlin": (network["nonlin"].rpartition(".")[2], "LeakyReLU"),
        "negative_slope": (nonlinearity.get("negative_slope", 0.01), 0.01),
        "nonlin_first": (network.get("nonlin_first", False), False),
    }
    for key, (value, needed) in expected.items():
        if value != needed:
            raise UsageError(f"{path}: {key} is {value}; only {needed} can be imported")


def _class_name(settings: Mapping[str, Any]) -> str:
    if "architecture" not in settings:  # before nnU-Net 2.3
        return str(settings["UNet_class_name"])
    return str(settings["architecture"]["network_class_name"]).rpartition(".")[2]


def _architecture(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The network's arguments; those of plans from before nnU-Net 2.3 get today's names."""
    if "architecture" in settings:
        arguments: dict[str, Any] = settings["architecture"]["arch_kwargs"]
        return arguments
    base, limit = settings["UNet_base_num_features"], settings["unet_max_num_features"]
    stages = len(settings["n_conv_per_stage_encoder"])
    return {
        "features_per_stage": [min(base * 2**stage, limit) for stage in range(stages)],
        "kernel_sizes": settings["conv_kernel_sizes"],
        "strides": settings["pool_op_kernel_sizes"],
        "n_conv_per_stage": settings["n_conv_per_stage_encoder"],
        "n_conv_per_stage_decoder": settings["n_conv_per_stage_decoder"],
        "norm_op": "InstanceNorm3d",
        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "nonlin": "LeakyReLU",
    }


def _per_stage(value: Any, stages: int) -> list[int]:
    return [value] * stages if isinstance(value, int) else list(value)


def _plan(settings: Mapping[str, Any], plans: Mapping[str, Any]) -> NnunetPlan:
    network = _architecture(settings)
    hu = plans["foreground_intensity_properties_per_channel"]["0"]
    first, second, third = (int(axis) for axis in plans["transpose_forward"])
    order = (first, second, third)
    if sorted(order) != [0, 1, 2]:
        raise ValueError(f"transpose_forward {order}")
    plan = Plan(
        spacing_mm=in_image_order([float(s) for s in settings["spacing"]], order),
        patch_size=in_image_order([int(n) for n in settings["patch_size"]], order),
        batch_size=int(settings["batch_size"]),
        channels=tuple(int(c) for c in network["features_per_stage"]),
        kernels=tuple(in_image_order(kernel, order) for kernel in network["kernel_sizes"]),
        strides=tuple(in_image_order(stride, order) for stride in network["strides"]),
        intensity=Intensity(
            mean_hu=float(hu["mean"]),
            std_hu=float(hu["std"]),
            low_hu=float(hu["percentile_00_5"]),
            high_hu=float(hu["percentile_99_5"]),
        ),
    )
    return NnunetPlan(plan, order)
