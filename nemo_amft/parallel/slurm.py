"""Where this process stands in a Slurm job: rank, world size and the address where the ranks meet, from what srun sets."""

from __future__ import annotations

import re
from collections.abc import Mapping

FIRST_PORT, NUM_PORTS = 12000, 20000
"""Ports below the range from which Linux hands out ports for outgoing connections (32768 and up)."""


def environment(given: Mapping[str, str]) -> dict[str, str]:
    """torch.distributed's variables, of those that `given`, a task's environment, lacks. Empty outside of Slurm steps."""
    if "SLURM_PROCID" not in given or "RANK" in given:  # with a RANK, torchrun has the say
        return {}
    found = {
        "RANK": given["SLURM_PROCID"],
        "WORLD_SIZE": given["SLURM_NTASKS"],
        "LOCAL_RANK": given["SLURM_LOCALID"],
        "MASTER_ADDR": first_host(given.get("SLURM_STEP_NODELIST") or given["SLURM_JOB_NODELIST"]),
        "MASTER_PORT": str(port(int(given["SLURM_JOB_ID"]), int(given.get("SLURM_RESTART_COUNT") or 0))),
    }
    return {name: value for name, value in found.items() if name not in given}


def first_host(nodes: str) -> str:
    """The first host of Slurm's notation: "gpu-b[08-11,20]-ib,gpu-c1" gives "gpu-b08-ib"."""
    first = re.match(r"(?:[^,\[]|\[[^\]]*\])+", nodes)
    assert first, nodes
    return re.sub(r"\[(\w+)[^\]]*\]", r"\1", first[0])


def port(job_id: int, restart_count: int) -> int:
    """Port to meet at. Neighbouring jobs differ, and so does a requeued job from its former self: its old port may still be
    held by a process that is being killed."""
    return FIRST_PORT + (job_id * 17 + restart_count) % NUM_PORTS
