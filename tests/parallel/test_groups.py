"""How a process finds out what job it is in."""

from __future__ import annotations

import os
import re
import time

import pytest

from nemo_amft.config.schema import ModelConfig
from nemo_amft.parallel import groups, meeting
from nemo_amft.types import RunError
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


def meet(environments: list[dict[str, str]], limit_s: float) -> tuple[str, float]:
    """What a rank says that is started with its environment, and the seconds it takes."""
    os.environ |= environments[int(os.environ["RANK"])]
    started = time.monotonic()
    try:
        meeting.meet(limit_s)
        said = "met"
    except RunError as error:
        said = str(error)
    except SystemExit as error:
        said = f"status {error.code}"
    return said, time.monotonic() - started


@pytest.mark.parametrize(
    ("environments", "said"),
    [
        ([{}, {}], ["met", "met"]),
        ([{"MASTER_ADDR": "no-such-host.invalid"}], [r"no-such-host\.invalid:\d+ .*: the host is not known on .+: .+"]),
        (
            [{"RANK": "1", "WORLD_SIZE": "2", "MASTER_PORT": "free", "TORCHELASTIC_USE_AGENT_STORE": "False"}],
            [r"rank 1: found nobody at 127\.0\.0\.1:\d+ \(MASTER_ADDR, MASTER_PORT\) within 1 s, expected rank 0 there"],
        ),
        (
            [{"WORLD_SIZE": "4"}] * 2,
            [r"127.*: found 2 of 4 ranks within 1 s, expected .* \(WORLD_SIZE=4\); absent: 2, 3", "status 1"],
        ),
        ([{}, {"WORLD_SIZE": "3"}], [r".*: found rank 1 with WORLD_SIZE=3, expected .* \(WORLD_SIZE=2\)", "status 1"]),
        (
            [{"WORLD_SIZE": "3"}, {"WORLD_SIZE": "3"}, {"RANK": "1"}],
            [r".*: found 3 processes with 2 RANKs, expected one process for each of 3", "status 1", "status 1"],
        ),
        ([{"RANK": "2", "WORLD_SIZE": "2"}], ["RANK=2: expected less than WORLD_SIZE=2"]),
    ],
    ids=["all", "no host", "nobody", "absent", "another world", "twice", "beyond"],
)
def test_ranks_that_cannot_meet_say_so_once_and_soon(environments, said):
    given = [{k: groups._free_port() if v == "free" else v for k, v in one.items()} for one in environments]
    found = run_ranks(len(given), meet, given, 1.0, process_group=False)
    for (text, seconds), expected in zip(found, said, strict=True):
        assert re.match(expected, text), found
        assert seconds < 20
