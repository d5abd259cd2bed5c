"""The network in torch, on any device and in any precision."""

from __future__ import annotations

import platform
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from pancreas_mtl.errors import UsageError
from pancreas_mtl.inference.engines.engine import Precision
from pancreas_mtl.models.network import MultitaskUNet
from pancreas_mtl.types import Evidence

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class TorchEngine:
    """The network in torch; results are float32 whatever the precision inside.

    Args:
        network: in evaluation mode; moved to `device`.
        device: "auto" takes CUDA where there is one.
        precision: "auto" is bf16 where the device computes in it natively, else fp16 on CUDA and
            fp32 on the CPU.

    Raises:
        UsageError: the device is not there, or fp16 is asked for on the CPU.
    """

    def __init__(
        self, network: MultitaskUNet, *, device: str = "auto", precision: Precision = "auto"
    ) -> None:
        self.device = choose_device(device)
        self.precision = choose_precision(self.device, precision)
        self.network = network.to(self.device).eval()

    def __call__(self, images: Tensor) -> tuple[Tensor, Evidence]:
        """Logits (B, C, D, H, W) and evidence (B, F) of windows (B, 1, D, H, W)."""
        with torch.inference_mode(), self._autocast():
            logits, evidence = self.network.window(images.to(self.device, non_blocking=True))
        return logits.float(), evidence

    def look(self, images: Tensor) -> tuple[Tensor, Evidence, Tensor]:
        """The same, and the subtype head's pooling weights (B, R, D, H, W)."""
        with torch.inference_mode(), self._autocast():
            logits, evidence, weights = self.network.look(images.to(self.device))
        return logits.float(), evidence, weights

    def classify(self, evidence: Evidence) -> Tensor:
        """Subtype logits (B, S) of whole-case evidence."""
        with torch.inference_mode():
            return self.network.classify(evidence)

    def _autocast(self) -> AbstractContextManager[object]:
        if self.precision == "fp32":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=_DTYPES[self.precision])


def choose_device(name: str) -> torch.device:
    """The device that `name` asks for; "auto" is CUDA where there is one, else the CPU."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UsageError(f"device={name}: not a device; use auto, cpu, cuda or cuda:N") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UsageError(f"device={name}: no CUDA device here; use device=auto")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        last = torch.cuda.device_count() - 1
        raise UsageError(f"device={name}: no such GPU; use cuda:{last} at most, or auto")
    return device


def choose_precision(device: torch.device, precision: Precision) -> str:
    """The precision that `precision` means on this device."""
    if precision == "fp16" and device.type == "cpu":
        raise UsageError("precision=fp16: the CPU has no use for it; use bf16 or fp32")
    if precision in ("fp32", "bf16", "fp16"):
        return precision
    if precision != "auto":
        raise UsageError(f"precision={precision}: choose one of auto, fp32, bf16, fp16")
    if device.type == "cuda":
        return "bf16" if cuda_has_bf16(device) else "fp16"
    return "bf16" if cpu_has_bf16() else "fp32"


def cuda_has_bf16(device: torch.device | None = None) -> bool:
    """Whether a GPU, the current one unless named, computes in bf16 natively (from Ampere on).

    torch calls bf16 supported on older ones too, where it is imitated.
    """
    return torch.cuda.get_device_capability(device) >= (8, 0)


def cpu_has_bf16() -> bool:
    """Whether this CPU multiplies bf16 natively (x86: AVX-512 BF16 or AMX).

    oneDNN calls bf16 supported on any AVX-512, where it only imitates it, several times slower
    than fp32.
    """
    if platform.machine().lower() in ("x86_64", "amd64"):
        return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
