"""How a process finds out what job it is in."""

from __future__ import annotations

import os

import pytest

from nemo_amft.config.schema import ModelConfig
from nemo_amft.parallel import groups
from tests.parallel.ranks import run_ranks

OF_A_JOB = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_USE_AGENT_STORE")
ALLOCATION = {"PROCID": "0", "NTASKS": "8", "LOCALID": "0", "JOB_NODELIST": "nowhere[1-2]", "JOB_ID": "1"}


def join(environment: dict[str, str], alone: bool) -> tuple[int, str]:
    """World size and port of a process that is started with this much of an environment."""
    for name in OF_A_JOB:
        os.environ.pop(name, None)
    os.environ |= environment
    place = groups.initialize(ModelConfig(), seed=1, alone=alone)
    return place.world_size, os.environ["MASTER_PORT"]


@pytest.mark.parametrize(
    ("environment", "alone"),
    [
        ({}, False),
        ({"MASTER_PORT": "given"}, False),
        ({f"SLURM_{name}": value for name, value in ALLOCATION.items()}, True),
        ({"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "3", "MASTER_ADDR": "nowhere", "MASTER_PORT": "1"}, True),
    ],
    ids=["nothing", "a port", "a shell of a Slurm allocation", "torchrun"],
)
def test_a_process_by_itself_is_a_job_of_one(environment, alone):
    if environment.get("MASTER_PORT") == "given":
        environment = {"MASTER_PORT": groups._free_port()}
    ((size, port),) = run_ranks(1, join, environment, alone, process_group=False)
    assert size == 1
    assert alone or port == environment.get("MASTER_PORT", port)
