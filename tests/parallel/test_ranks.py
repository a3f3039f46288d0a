"""The harness itself: results in order, every rank's error shown, nothing left running."""

from __future__ import annotations

import os
import time

import pytest
import torch
import torch.distributed as dist

from tests.parallel.ranks import RanksFailed, run_ranks


def rank_plus_total(offset: int) -> tuple[int, int]:
    total = torch.tensor(dist.get_rank() + offset)
    dist.all_reduce(total)
    return dist.get_rank(), total.item()


def fail_on_rank_1() -> None:
    if dist.get_rank() == 1:
        raise ValueError("the cause")
    dist.barrier()


def sleep_on_rank_0(started: str) -> None:
    if dist.get_rank() == 0:
        with open(started, "w") as file:
            file.write(str(os.getpid()))
        time.sleep(600)


def test_results_come_in_the_order_of_ranks():
    assert run_ranks(2, rank_plus_total, 10) == [(0, 21), (1, 21)]


def test_the_error_that_is_the_cause_is_shown():
    with pytest.raises(RanksFailed, match=r"rank 1: (.|\n)*ValueError: the cause"):
        run_ranks(2, fail_on_rank_1, timeout=30)


def test_a_rank_that_hangs_is_named_and_killed(tmp_path):
    with pytest.raises(RanksFailed, match=r"1 of 2 (.|\n)*rank 0: gave no result"):
        run_ranks(2, sleep_on_rank_0, str(tmp_path / "pid"), timeout=3)
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)
