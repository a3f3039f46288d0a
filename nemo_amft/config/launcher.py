"""What the launcher (torchrun, srun, or none) says of this process, before torch.distributed is up."""

from __future__ import annotations

import os


def rank() -> int:
    """This process's number in the job."""
    return int(os.environ.get("RANK") or os.environ.get("SLURM_PROCID") or 0)


def processes_started() -> tuple[int, str]:
    """How many processes the launcher started, and where that is said."""
    for name in ("WORLD_SIZE", "SLURM_NTASKS"):
        if value := os.environ.get(name):
            return int(value), f"{name}={value}"
    return 1, "no launcher, so 1"
