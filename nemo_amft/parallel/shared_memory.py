"""/dev/shm, which the processes of a node share. A container has of it what its runtime gives, whatever the machine has: 64 MiB
with Docker, unless told otherwise, and 64 KiB elsewhere. Who maps more of it than there is dies by SIGBUS, without a word."""

from __future__ import annotations

import os
from pathlib import Path

from nemo_amft.config.schema import Config
from nemo_amft.types import UserError

FOLDER = Path("/dev/shm")
MORE = "docker run --shm-size=1g or --ipc=host; apptainer and pyxis have the node's"
KIB, MIB = 2**10, 2**20
SEMAPHORES = 32 * KIB
"""For the locks between a process and its children: a page each."""
NCCL = 10 * MIB
"""One segment of NCCL's, for a GPU that another does not reach otherwise (9,637,888 bytes by its message without it). How
many it takes depends on the node; the doctor points out less than 1 GiB."""
VLLM_A_THREAD = 4 * MIB + 4 * KIB
"""The buffer through which the ranks of a vLLM engine on a CPU speak, a thread of each; measured with vLLM 0.32."""


def free(folder: Path = FOLDER) -> int | None:
    """Bytes that are left; None where there is no such folder."""
    try:
        found = os.statvfs(folder)
    except OSError:
        return None
    return found.f_bavail * found.f_frsize


def needed(config: Config, gpu: bool) -> int:
    """Bytes that the ranks of one node take at the least."""
    ranks, rollout = config.trainer.devices, config.rollout
    if gpu:
        return SEMAPHORES + (NCCL if ranks > 1 else 0)
    threads = int(os.environ.get("OMP_NUM_THREADS") or 1)
    speak = rollout.engine == "vllm" and rollout.tensor_model_parallel_size > 1
    return SEMAPHORES + (VLLM_A_THREAD * threads * ranks if speak else 0)


def check(config: Config, gpu: bool, folder: Path = FOLDER) -> None:
    """Raises UserError where there is less than the ranks of this node take."""
    there, need = free(folder), needed(config, gpu)
    if there is not None and there < need:
        raise UserError(
            f"{folder}: found {show(there)} free, expected at least {show(need)} for what its processes share ({MORE})"
        )


def show(number: int) -> str:
    """Bytes in KiB or MiB."""
    return f"{number / KIB:.0f} KiB" if number < MIB else f"{number / MIB:.0f} MiB"
