"""The networks of a bundle as graphs of free batch and volume, from which exporters start."""

from __future__ import annotations

import warnings

import torch
from torch.export import Dim, ExportedProgram

from pancreas_mtl.inference.bundle import Bundle
from pancreas_mtl.inference.exportable import (
    INPUT_NAME,
    ExportableClassifier,
    ExportableWindow,
)

AXES = ("depth", "height", "width")


def trace_window(bundle: Bundle) -> ExportedProgram:
    """`ExportableWindow`: batch free; D, H, W any multiples of the plan's strides, from two up."""
    divisor = bundle.plan.reductions[-1]
    sizes = {
        axis: Dim(name, min=2) if k == 1 else k * Dim(f"{name}_strides", min=2)
        for axis, (name, k) in enumerate(zip(AXES, divisor, strict=True), start=2)
    }
    example = torch.zeros(2, 1, *(3 * k for k in divisor))
    shapes = {INPUT_NAME: {0: Dim("batch", min=1), **sizes}}
    return _trace(ExportableWindow(bundle.network), (example,), shapes)


def trace_classifier(bundle: Bundle) -> ExportedProgram:
    """`ExportableClassifier`: any number of views."""
    with torch.inference_mode():
        _, sums, weights = ExportableWindow(bundle.network)(
            torch.zeros(2, 1, *(2 * k for k in bundle.plan.reductions[-1]))
        )
    views = {0: Dim("views", min=1)}
    evidence = (sums.clone(), weights.clone())
    module = ExportableClassifier(bundle.network)
    return _trace(module, evidence, dict.fromkeys(module.input_names, views))


def _trace(
    module: torch.nn.Module, example: tuple[torch.Tensor, ...], shapes: dict[str, dict[int, Dim]]
) -> ExportedProgram:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.export.export(module.eval(), example, dynamic_shapes=shapes)
