"""A plugin of pytest: hides what the extras bring, as where none of them is installed."""

import sys

PACKAGES = {
    "openvino": ("openvino",),
    "onnx": ("onnx", "onnxruntime", "onnxscript"),
    "monai-bundle": ("fire", "ignite"),
    "dicom": ("pydicom", "highdicom", "pylibjpeg", "openjpeg", "gdcm"),
    "sweep": ("optuna",),
    "slurm": ("submitit", "hydra_plugins.hydra_submitit_launcher"),
    "ray": ("ray", "hydra_plugins.hydra_ray_launcher"),
    "tensorboard": ("tensorboard",),
    "fuzz": ("atheris",),
}

sys.modules.update(dict.fromkeys((name for names in PACKAGES.values() for name in names), None))
