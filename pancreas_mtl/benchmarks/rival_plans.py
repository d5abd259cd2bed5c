"""nnU-Net's `plans.json` of a plan of ours, as its default planner writes it; imports nothing."""

from typing import Any

CONFIGURATION = "3d_fullres"
DATASET = {
    "name": "Dataset999_Benchmark",
    "channel_names": {"0": "CT"},
    "labels": {"background": 0, "pancreas": 1, "lesion": 2},
    "numTraining": 1,
    "file_ending": ".nii.gz",
}
RESAMPLING = {
    what: {"is_seg": what == "seg", "order": order, "order_z": 0, "force_separate_z": None}
    for what, order in {"data": 3, "seg": 1, "probabilities": 1}.items()
}


def plans_of(
    plan: dict[str, Any], transpose_forward: tuple[int, ...] = (0, 1, 2)
) -> dict[str, Any]:
    """nnU-Net's plans.json of a plan.json, whose axes are nnU-Net's."""
    intensity = plan["intensity"]
    return {
        "dataset_name": DATASET["name"],
        "plans_name": "nnUNetPlans",
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": list(transpose_forward),
        "transpose_backward": [list(transpose_forward).index(axis) for axis in range(3)],
        "configurations": {CONFIGURATION: configuration_of(plan)},
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {
            "0": {
                "mean": intensity["mean_hu"],
                "std": intensity["std_hu"],
                "percentile_00_5": intensity["low_hu"],
                "percentile_99_5": intensity["high_hu"],
            }
        },
    }


def configuration_of(plan: dict[str, Any]) -> dict[str, Any]:
    """What nnU-Net's default planner writes around the network."""
    return {
        "data_identifier": "benchmark",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": plan["batch_size"],
        "patch_size": plan["patch_size"],
        "spacing": plan["spacing_mm"],
        "normalization_schemes": ["CTNormalization"],
        "use_mask_for_norm": [False],
        **{f"resampling_fn_{what}": "resample_data_or_seg_to_shape" for what in RESAMPLING},
        **{f"resampling_fn_{what}_kwargs": kwargs for what, kwargs in RESAMPLING.items()},
        "batch_dice": False,
        "architecture": {
            "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
            "arch_kwargs": architecture_of(plan),
            "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
        },
    }


def architecture_of(plan: dict[str, Any]) -> dict[str, Any]:
    """The arguments of nnU-Net's PlainConvUNet."""
    stages = len(plan["channels"])
    return {
        "n_stages": stages,
        "features_per_stage": plan["channels"],
        "conv_op": "torch.nn.modules.conv.Conv3d",
        "kernel_sizes": plan["kernels"],
        "strides": plan["strides"],
        "n_conv_per_stage": [2] * stages,
        "n_conv_per_stage_decoder": [2] * (stages - 1),
        "conv_bias": True,
        "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    }
