"""Reading training checkpoints; they hold plain values, so no code can hide in them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pancreas_mtl.errors import UsageError

AVERAGED = "averaged.module."


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Load a checkpoint of this project onto the CPU.

    Raises:
        UsageError: the file is missing, damaged, or holds more than plain values.
    """
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        checkpoint["state_dict"]
    except FileNotFoundError:
        raise UsageError(f"{path}: not found; without it, start anew by overwrite=true") from None
    except Exception as error:  # whatever the bytes of a foreign file make a reader raise
        what = " ".join(f"{type(error).__name__} {error}".split())[:80]
        raise UsageError(
            f"{path}: not a checkpoint of this project ({what}); start anew by overwrite=true"
        ) from None
    return dict(checkpoint)


def checkpoint_step(path: Path) -> int:
    """The optimiser steps behind a checkpoint; 0 where there is none."""
    return int(read_checkpoint(path)["global_step"]) if path.exists() else 0


def averaged_weights(path: Path) -> dict[str, Tensor]:
    """The network's moving average from a checkpoint, by the network's own names."""
    state: dict[str, Tensor] = read_checkpoint(path)["state_dict"]
    return {
        name.removeprefix(AVERAGED): value
        for name, value in state.items()
        if name.startswith(AVERAGED)
    }
