"""What runs the network on a batch of windows: torch on any device, or OpenVINO on the CPU.

Both take one pass for mask and evidence, give float32 whatever the precision inside, and agree
with torch in fp32 as far as the precision goes.
"""

from __future__ import annotations

from pancreas_mtl.errors import UsageError
from pancreas_mtl.inference.engines.engine import Engine, Precision
from pancreas_mtl.inference.engines.torch_engine import (
    TorchEngine,
    choose_precision,
    cpu_has_bf16,
    cuda_has_bf16,
)
from pancreas_mtl.models.network import MultitaskUNet
from pancreas_mtl.types import Plan

ENGINES = ("torch", "openvino")

__all__ = [
    "ENGINES",
    "Engine",
    "Precision",
    "TorchEngine",
    "choose_precision",
    "cpu_has_bf16",
    "cuda_has_bf16",
    "make_engine",
]


def make_engine(
    name: str, network: MultitaskUNet, plan: Plan, *, device: str, precision: Precision
) -> Engine:
    """The engine of this name, ready to run `network`.

    Raises:
        UsageError: there is no such engine, device or precision here.
    """
    if name not in ENGINES:
        raise UsageError(f"engine={name}: choose one of {', '.join(ENGINES)}")
    if name == "torch":
        return TorchEngine(network, device=device, precision=precision)
    try:
        from pancreas_mtl.inference.engines.openvino_engine import OpenVinoEngine
    except ModuleNotFoundError as error:
        raise UsageError(
            f"engine=openvino: {error.name} is not installed; pip install 'pancreas-mtl[openvino]'"
        ) from None
    return OpenVinoEngine(network, plan, device=device, precision=precision)
