"""The network in OpenVINO, on the CPU. Needs the extra `[openvino]`."""

from __future__ import annotations

import os
import warnings
from functools import cache
from pathlib import Path

import numpy as np
import openvino as ov
import torch
from openvino.frontend import FrontEndManager
from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder
from torch import Tensor

from pancreas_mtl.errors import UsageError
from pancreas_mtl.inference.engines.engine import Precision
from pancreas_mtl.inference.exportable import INPUT_NAME, ExportableWindow, example_image
from pancreas_mtl.models.network import MultitaskUNet
from pancreas_mtl.types import Evidence, Plan

_NAMES = {"fp32": "f32", "bf16": "bf16"}


class OpenVinoEngine:
    """The network compiled by OpenVINO once, for inputs of any size.

    The compiled model is kept on disk, so that the next process starts faster.

    Args:
        network: in evaluation mode; it also classifies, in torch.
        plan: the network's.
        device: "auto" or "cpu".
        precision: "auto" is bf16 where the CPU computes in it natively, else fp32.

    Raises:
        UsageError: another device, or a precision that this CPU does not compute in.
    """

    def __init__(
        self,
        network: MultitaskUNet,
        plan: Plan,
        *,
        device: str = "auto",
        precision: Precision = "auto",
    ) -> None:
        if device not in ("auto", "cpu"):
            raise UsageError(f"device={device}: engine=openvino runs on the CPU; use device=cpu")
        self.device = torch.device("cpu")
        self.precision = choose_precision(precision)
        self.network = network.to(self.device).eval()
        settings = {
            "CACHE_DIR": str(cache_dir()),
            "INFERENCE_PRECISION_HINT": _NAMES[self.precision],
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        }
        self._compiled = core().compile_model(openvino_model(self.network, plan), "CPU", settings)

    def __call__(self, images: Tensor) -> tuple[Tensor, Evidence]:
        """Logits (B, C, D, H, W) and evidence (B, F) of windows (B, 1, D, H, W)."""
        answer = self._compiled(np.ascontiguousarray(images.numpy()), share_inputs=True)
        logits, *evidence = (torch.from_numpy(answer[port]) for port in self._compiled.outputs)
        if not evidence:
            evidence = [logits.new_zeros(len(images), 0)] * 2
        return logits, Evidence(*evidence)

    def look(self, images: Tensor) -> tuple[Tensor, Evidence, Tensor]:
        """The same, and the subtype head's pooling weights (B, R, D, H, W); this pass in torch."""
        with torch.inference_mode():
            return self.network.look(images)

    def classify(self, evidence: Evidence) -> Tensor:
        """Subtype logits (B, S) of whole-case evidence."""
        with torch.inference_mode():
            return self.network.classify(evidence)


def openvino_model(network: MultitaskUNet, plan: Plan) -> ov.Model:
    """The network as an OpenVINO model of `ExportableWindow`, for any (B, D, H, W).

    Goes through OpenVINO's front end itself: `openvino.convert_model` would report its use to
    Intel, unless the user has opted out.
    """
    module = ExportableWindow(network)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", torch.jit.TracerWarning)  # branches on ranks and channels
        decoder = TorchScriptPythonDecoder(module, example_input=(example_image(plan),))
    front_end = FrontEndManager().load_by_framework("pytorch")
    model = front_end.convert(front_end.load(decoder))
    model.reshape({0: ov.PartialShape([-1, 1, -1, -1, -1])})
    model.inputs[0].get_tensor().set_names({INPUT_NAME})
    for port, name in zip(model.outputs, module.output_names, strict=True):
        port.get_tensor().set_names({name})
    return model


@cache
def core() -> ov.Core:
    """OpenVINO, once in a process.

    Each `ov.Core` gives the thread a stack for signal handlers, and puts back the one from before
    when it goes. Two that go in the order in which they came put back one that is gone: the next
    signal is a segmentation fault.
    """
    return ov.Core()


def choose_precision(precision: Precision) -> str:
    """The precision that `precision` means on this CPU; OpenVINO itself would go on in fp32."""
    native = "BF16" in core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    if precision == "auto":
        return "bf16" if native else "fp32"
    if precision not in _NAMES:
        raise UsageError(f"precision={precision}: engine=openvino has fp32 and bf16")
    if precision == "bf16" and not native:
        raise UsageError(
            "precision=bf16: this CPU has no bf16 (AVX-512 BF16 or AMX), and OpenVINO would go on "
            "in fp32; use precision=fp32, or engine=torch, which emulates it"
        )
    return precision


def cache_dir() -> Path:
    """Where compiled models are kept: `$XDG_CACHE_HOME/pancreas_mtl`, by default in `~/.cache`."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "pancreas_mtl" / "openvino"
