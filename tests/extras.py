"""What each extra brings. As a plugin, `pytest -p extras`, it hides all of it."""

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


def pytest_configure() -> None:
    sys.modules.update(dict.fromkeys((name for names in PACKAGES.values() for name in names), None))
