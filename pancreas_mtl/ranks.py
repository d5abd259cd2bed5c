"""What a launcher such as torchrun or srun tells the processes it starts together.

It tells it by the environment, so it is known before any process group exists.
"""

from __future__ import annotations

import os

RANKS = ("RANK", "LOCAL_RANK", "SLURM_PROCID")
SIZES = ("WORLD_SIZE", "SLURM_NTASKS")
MORE = (
    *("NODE_RANK", "GROUP_RANK", "ROLE_RANK", "ROLE_NAME", "SLURM_LOCALID", "SLURM_NODEID"),
    *("LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE", "ROLE_WORLD_SIZE", "SLURM_NTASKS_PER_NODE"),
    *("SLURM_NNODES", "SLURM_NPROCS", "MASTER_ADDR", "MASTER_PORT"),
)
"""What else PyTorch and Lightning take for signs that this process is one of several."""

TORCHRUN = "TORCHELASTIC_"  # begins all other names of torchrun's


def is_first_process() -> bool:
    """Whether this process is alone or of rank 0, also before any process group exists."""
    return all(os.environ.get(name, "0") == "0" for name in RANKS)


def has_siblings() -> bool:
    """Whether a launcher such as torchrun or srun has started processes of other ranks as well."""
    return any(int(os.environ.get(name, "1")) > 1 for name in SIZES)


def environment_alone() -> dict[str, str]:
    """The environment for a process that is none of the launcher's, whoever starts it."""
    told = {*RANKS, *SIZES, *MORE}
    return {
        name: value
        for name, value in os.environ.items()
        if name not in told and not name.startswith(TORCHRUN)
    }
