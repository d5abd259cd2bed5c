"""Make the small nnU-Net models with random weights, and nnU-Net's answers, for the tests.

Runs in an environment with nnunetv2 2.8.1 (`make bench-nnunet-env`), never in this project's own:

    .nnunet/bin/python tests/interop/make_nnunet_pair.py tests/interop/nnunet
"""

import json
import os
import sys
import tempfile
from pathlib import Path

SCRATCH = tempfile.mkdtemp()
os.environ.update({f"nnUNet_{part}": SCRATCH for part in ("raw", "preprocessed", "results")})

import numpy as np  # noqa: E402
import torch  # noqa: E402
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor  # noqa: E402
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer  # noqa: E402

DATASET = {
    "name": "Dataset999_Random",
    "channel_names": {"0": "CT"},
    "labels": {"background": 0, "pancreas": 1, "lesion": 2},
    "numTraining": 1,
    "file_ending": ".nii.gz",
}
RESAMPLING = {"is_seg": False, "order_z": 0, "force_separate_z": None}
MODELS = {
    "isotropic": {
        "spacing": [1.5, 1.5, 1.5],
        "patch_size": [16, 16, 16],
        "kernels": [[3, 3, 3]] * 3,
        "strides": [[1, 1, 1], [2, 2, 2], [2, 2, 2]],
        "transpose_forward": [0, 1, 2],
        "image_spacing": [2.0, 1.3, 1.1],
        "shape": (14, 22, 25),
    },
    # nnU-Net puts the coarsest axis first; here that is the image's last
    "anisotropic": {
        "spacing": [5.0, 1.2, 1.0],
        "patch_size": [8, 16, 16],
        "kernels": [[1, 3, 3], [1, 3, 3], [3, 3, 3]],
        "strides": [[1, 1, 1], [1, 2, 2], [2, 2, 2]],
        "transpose_forward": [2, 0, 1],
        "image_spacing": [1.1, 0.9, 4.0],
        "shape": (21, 24, 11),
    },
}


def plans_of(model):
    stages = len(model["strides"])
    configuration = {
        "data_identifier": "random",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": model["patch_size"],
        "spacing": model["spacing"],
        "normalization_schemes": ["CTNormalization"],
        "use_mask_for_norm": [False],
        "resampling_fn_data": "resample_data_or_seg_to_shape",
        "resampling_fn_seg": "resample_data_or_seg_to_shape",
        "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
        "resampling_fn_data_kwargs": {**RESAMPLING, "order": 3},
        "resampling_fn_seg_kwargs": {**RESAMPLING, "is_seg": True, "order": 1},
        "resampling_fn_probabilities_kwargs": {**RESAMPLING, "order": 1},
        "batch_dice": False,
        "architecture": {
            "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
            "arch_kwargs": {
                "n_stages": stages,
                "features_per_stage": [4, 6, 8],
                "conv_op": "torch.nn.modules.conv.Conv3d",
                "kernel_sizes": model["kernels"],
                "strides": model["strides"],
                "n_conv_per_stage": [2] * stages,
                "n_conv_per_stage_decoder": [2] * (stages - 1),
                "conv_bias": True,
                "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
                "norm_op_kwargs": {"eps": 1e-5, "affine": True},
                "dropout_op": None,
                "dropout_op_kwargs": None,
                "nonlin": "torch.nn.LeakyReLU",
                "nonlin_kwargs": {"inplace": True},
            },
            "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
        },
    }
    return {
        "dataset_name": DATASET["name"],
        "plans_name": "nnUNetPlans",
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": model["transpose_forward"],
        "transpose_backward": [model["transpose_forward"].index(axis) for axis in range(3)],
        "configurations": {"3d_fullres": configuration},
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {
            "0": {
                "mean": 74.0,
                "std": 44.0,
                "percentile_00_5": -56.0,
                "percentile_99_5": 180.0,
                "min": -400.0,
                "max": 1900.0,
                "median": 75.0,
            }
        },
    }


def write_model(folder, model):
    """As nnU-Net's trainer leaves it, with random weights, norms and biases included."""
    plans = plans_of(model)
    trainer = nnUNetTrainer(
        {**plans, "continue_training": False}, "3d_fullres", 0, DATASET, torch.device("cpu")
    )
    trainer.network = trainer.build_network_architecture(
        trainer.plans_manager, trainer.configuration_manager, 1, 3, enable_deep_supervision=True
    )
    with torch.no_grad():
        for name, parameter in trainer.network.named_parameters():
            if name.endswith((".norm.weight", ".bias")):
                parameter.uniform_(0.5, 1.5)
        trainer.network.decoder.deep_supervision = False
        logits = trainer.network(torch.randn(1, 1, *model["patch_size"]))
        last = trainer.network.decoder.seg_layers[-1]
        last.bias -= logits.mean(dim=(0, 2, 3, 4))  # so that every label is the largest somewhere
    trainer.optimizer, trainer.lr_scheduler = trainer.configure_optimizers()
    trainer.logger.log("ema_fg_dice", np.float64(0.5), 0)  # numpy scalars, as after an epoch
    trainer.logger.log("train_losses", np.float32(0.25), 0)
    trainer._best_ema = np.float64(0.5)
    trainer.inference_allowed_mirroring_axes = (0, 1, 2)
    (folder / "fold_0").mkdir(parents=True, exist_ok=True)
    (folder / "plans.json").write_text(json.dumps(plans, indent=1) + "\n")
    (folder / "dataset.json").write_text(json.dumps(DATASET, indent=1) + "\n")
    trainer.save_checkpoint(folder / "fold_0" / "checkpoint_final.pth")


def write_answers(folder, model):
    """One window through the network, and one image from HU to labels with nnU-Net's defaults."""
    predictor = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(folder), (0,))
    rng = np.random.default_rng(0)
    window = torch.from_numpy(rng.normal(size=(1, 1, *model["patch_size"])).astype(np.float32))
    with torch.inference_mode():
        logits = predictor.network.eval()(window)
    forward = model["transpose_forward"]
    back = [forward.index(axis) for axis in range(3)]
    image_hu = rng.normal(60, 60, model["shape"]).round().astype(np.int16)
    labels = predictor.predict_single_npy_array(
        image_hu[None].astype(np.float32), {"spacing": model["image_spacing"]}
    )
    np.savez_compressed(
        folder / "answers.npz",
        window=window[0, 0].numpy().transpose(back),  # in the image's axes
        logits=logits[0].numpy().transpose(0, *(axis + 1 for axis in back)),
        image_hu=image_hu,
        spacing_mm=np.array(model["image_spacing"]),
        labels=labels.astype(np.uint8),
    )


if __name__ == "__main__":
    for name, model in MODELS.items():
        torch.manual_seed(0)
        write_model(Path(sys.argv[1], name), model)
        write_answers(Path(sys.argv[1], name), model)
