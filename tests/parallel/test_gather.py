"""Completions gathered over ranks."""

import struct

import torch.distributed as dist

from nemo_amft.rollout.gather import gather_completions
from nemo_amft.types import Completion
from tests.parallel.ranks import run_ranks


def _float32(x: float) -> float:
    return struct.unpack("f", struct.pack("f", x))[0]


def _of(rank: int) -> list[Completion]:
    """Rank r has r completions of growing length; one of length 0 among them."""
    return [
        Completion(tuple(range(rank, rank + n)), tuple(_float32(-0.1 * i) for i in range(n)), n % 2 == 1) for n in range(rank)
    ]


def gathered() -> tuple[list[Completion], list[Completion]]:
    return gather_completions(_of(dist.get_rank())), gather_completions([])


def test_every_rank_gets_all_completions_in_the_order_of_ranks():
    expected = [completion for rank in range(3) for completion in _of(rank)]
    assert run_ranks(3, gathered) == [(expected, [])] * 3


def test_alone_they_come_back_as_they_are():
    assert run_ranks(1, gathered) == [([], [])]
