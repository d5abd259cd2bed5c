"""A bundle as ONNX: `window.onnx` and, with a subtype head, `classifier.onnx`."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import torch
from torch.export import ExportedProgram

from pancreas_mtl.inference.bundle import Bundle
from pancreas_mtl.inference.exportable import (
    INPUT_NAME,
    ExportableClassifier,
    ExportableWindow,
)
from pancreas_mtl.interop.parity import Run, check_networks
from pancreas_mtl.interop.trace import AXES, trace_classifier, trace_window

OPSET = 18
_TALKATIVE = ("torch.onnx", "onnxscript", "onnx_ir")  # they tell of every node they fold
FILES = {"window": "window.onnx", "classifier": "classifier.onnx"}


def write_onnx(bundle: Bundle, folder: Path) -> dict[str, Any]:
    """Write the networks and check them in onnxruntime; how far they are off.

    Raises:
        CaseError: they disagree with torch.
    """
    names = list(ExportableWindow(bundle.network).output_names)
    window = folder / FILES["window"]
    _write(trace_window(bundle), window, [INPUT_NAME], names)
    _name_axes(window, {INPUT_NAME: ("batch", None, *AXES), "logits": ("batch", None, *AXES)})
    classifier = None
    if bundle.network.has_subtype:
        kind = ExportableClassifier
        classifier = folder / FILES["classifier"]
        _write(trace_classifier(bundle), classifier, kind.input_names, kind.output_names)
        _name_axes(classifier, dict.fromkeys((*kind.input_names, *kind.output_names), ("views",)))
    run_classifier = _runner(classifier) if classifier else None
    parity = check_networks(bundle, _runner(window), run_classifier)
    runtime = f"onnxruntime {onnxruntime.__version__}, opset {OPSET}"
    return {"runtime": runtime, **parity}


def _write(program: ExportedProgram, path: Path, inputs: Any, outputs: Any) -> None:
    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exported = torch.onnx.export(
            program,
            dynamo=True,
            opset_version=OPSET,
            input_names=list(inputs),
            output_names=list(outputs),
            verbose=False,
        )
    assert exported is not None
    exported.save(path)


def _name_axes(path: Path, axes: dict[str, tuple[str | None, ...]]) -> None:
    """Name the free axes of inputs and outputs, in place of the tracer's `s40` and `4*s16`."""
    model = onnx.load(path)
    for value in (*model.graph.input, *model.graph.output):
        dims = value.type.tensor_type.shape.dim
        for dim, name in zip(dims, axes.get(value.name, ("batch",)), strict=False):
            if name is not None:
                dim.dim_param = name
    onnx.checker.check_model(model)
    onnx.save(model, path)


def _runner(path: Path) -> Run:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [one.name for one in session.get_inputs()]
    return lambda arrays: session.run(None, dict(zip(names, arrays, strict=True)))
