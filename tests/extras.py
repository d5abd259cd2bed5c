"""What each extra brings. As a plugin, `pytest -p extras`, it hides all of it."""

import sys

import pytest

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


def needs(extra: str) -> None:
    """Skip a test by the name of the extra that it needs, where that is not installed."""
    for package in PACKAGES[extra]:
        pytest.importorskip(package, reason=f"needs the extra {extra}")


def pytest_configure() -> None:
    sys.modules.update(dict.fromkeys((name for names in PACKAGES.values() for name in names), None))
