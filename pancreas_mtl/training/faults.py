"""Faults of the machine during training, told as what they are, with a remedy."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from pancreas_mtl.data.files import reason
from pancreas_mtl.errors import TrainingError

FEWER = "lower plan.batch_size or plan.patch_size and start anew by overwrite=true"
GO_ON = "then go on by resume=true"


@contextmanager
def faults_explained() -> Iterator[None]:
    """Raise a `TrainingError` in the place of a fault that is no defect of the program."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if (explained := _explained(error)) is None:
            raise
        raise explained from error


def _explained(error: Exception) -> TrainingError | None:
    """Known by what torch's loader and allocator say; None for anything else."""
    text, why = str(error), reason(error)
    if isinstance(error, torch.cuda.OutOfMemoryError):
        return TrainingError(
            f"memory of the GPU ran out ({why}): free it and go on by resume=true; or {FEWER}"
        )
    if isinstance(error, MemoryError) or "can't allocate memory" in text:
        return TrainingError(
            f"memory ran out ({why}): free it or lower sampling.workers, and go on by resume=true; "
            f"or {FEWER}"
        )
    if "DataLoader timed out" in text:
        return TrainingError(
            f"no batch came in time ({why}): check the disk of paths.cache, or use "
            f"sampling.workers=0; {GO_ON}"
        )
    if "DataLoader worker (pid" in text:
        return TrainingError(
            f"a process that loads patches was killed ({why}), most likely because memory ran "
            f"out: free memory, or lower sampling.workers; {GO_ON}"
        )
    return None
