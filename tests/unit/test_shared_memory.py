"""A node whose processes would die of a small /dev/shm is refused before they take any of it."""

import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from nemo_amft.config.load import load
from nemo_amft.parallel import shared_memory
from nemo_amft.types import UserError


@pytest.mark.parametrize(
    ("there", "gpu", "overrides", "wanted"),
    [
        (16, False, (), "32 KiB"),
        (64, False, (), None),
        # Seen in a run on two ranks: 8,396,800 bytes, and SIGBUS where there are 64 KiB.
        (8_000, False, ("rollout.tensor_model_parallel_size=2",), "8 MiB"),
        (9_000, False, ("rollout.tensor_model_parallel_size=2",), None),
        (
            8_000,
            False,
            ("rollout.tensor_model_parallel_size=2", "rollout=megatron", "rollout.tensor_model_parallel_size=1"),
            None,
        ),
        (64, True, ("trainer.devices=8",), "10 MiB"),
        (64 * 1024, True, ("trainer.devices=8",), None),  # Docker's own size
        (64, True, ("trainer.devices=1",), None),
    ],
)
def test_what_the_ranks_of_a_node_take_has_to_be_there(monkeypatch, there, gpu, overrides, wanted):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(os, "statvfs", lambda folder: SimpleNamespace(f_bavail=there // 4, f_frsize=4096))
    config = load(["--config-name", "quickstart", *overrides], check=False)
    if wanted is None:
        shared_memory.check(config, gpu)
        return
    with pytest.raises(UserError, match=rf"^/dev/shm: found \d+ \w+ free, expected at least {wanted} for what .*--shm-size=1g"):
        shared_memory.check(config, gpu)


def test_a_machine_without_it_is_left_alone():
    assert shared_memory.free(Path("/nowhere")) is None
    shared_memory.check(load(["--config-name", "quickstart"], check=False), False, Path("/nowhere"))
