"""A bundle as OpenVINO IR: `window.xml` and, with a subtype head, `classifier.xml`."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any

import openvino as ov
from openvino.frontend import FrontEndManager
from openvino.frontend.pytorch.fx_decoder import TorchFXPythonDecoder
from torch.export import ExportedProgram

from pancreas_mtl.inference.bundle import Bundle
from pancreas_mtl.inference.engines.openvino_engine import core
from pancreas_mtl.inference.exportable import (
    INPUT_NAME,
    ExportableClassifier,
    ExportableWindow,
)
from pancreas_mtl.interop.parity import Run, check_networks
from pancreas_mtl.interop.trace import trace_classifier, trace_window

FILES = {"window": "window.xml", "classifier": "classifier.xml"}


def write_openvino(bundle: Bundle, folder: Path) -> dict[str, Any]:
    """Write the networks in float32 and check them on the CPU in float32; how far they are off.

    Raises:
        CaseError: they disagree with torch.
    """
    names = ExportableWindow(bundle.network).output_names
    window = folder / FILES["window"]
    _write(trace_window(bundle), window, (INPUT_NAME,), names)
    classifier = None
    if bundle.network.has_subtype:
        kind = ExportableClassifier
        classifier = folder / FILES["classifier"]
        _write(trace_classifier(bundle), classifier, kind.input_names, kind.output_names)
    run_classifier = _runner(classifier) if classifier else None
    parity = check_networks(bundle, _runner(window), run_classifier)
    return {"runtime": f"openvino {ov.__version__.split('-')[0]}, float32", **parity}


def _write(
    program: ExportedProgram, path: Path, inputs: tuple[str, ...], outputs: tuple[str, ...]
) -> None:
    """Through the front end itself: `openvino.convert_model` would report its use to Intel."""
    front_end = FrontEndManager().load_by_framework("pytorch")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch about its own parts
        before = logging.root.manager.disable
        logging.disable(logging.WARNING)  # OpenVINO misses operations that are not needed here
        try:
            decoder = TorchFXPythonDecoder.from_exported_program(program)
        finally:
            logging.disable(before)
        model = front_end.convert(front_end.load(decoder))
    for ports, names in ((model.inputs, inputs), (model.outputs, outputs)):
        for port, name in zip(ports, names, strict=True):
            port.get_tensor().set_names({name})
    ov.save_model(model, path, compress_to_fp16=False)


def _runner(path: Path) -> Run:
    """Compiled in float32, since OpenVINO takes bf16 by itself where the CPU has it."""
    compiled = core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda arrays: list(compiled(list(arrays)).to_tuple())
