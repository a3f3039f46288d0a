"""Lockstep ranks themselves: communications carry data, and what would hang or pass by on gloo is told by name."""

from __future__ import annotations

import os

import pytest
import torch
import torch.distributed as dist

from nemo_amft.config.schema import ModelConfig
from nemo_amft.parallel import groups
from tests.lockstep.exchange import Mismatch, Untaken
from tests.lockstep.world import Deadlock, run_lockstep
from tests.parallel.ranks import RanksFailed, run_ranks


def every_operation() -> dict[str, list[float]]:
    """What a rank holds after each operation that this project or Megatron uses."""
    rank, n = dist.get_rank(), dist.get_world_size()
    own = torch.arange(4.0) + 10 * rank
    found: dict[str, list[float]] = {}

    def note(name: str, *tensors: torch.Tensor) -> None:
        found[name] = torch.cat([t.reshape(-1) for t in tensors]).tolist()

    for op in (dist.ReduceOp.SUM, dist.ReduceOp.MAX, dist.ReduceOp.MIN):
        value = own.clone()
        dist.all_reduce(value, op=op)
        note(f"all_reduce {op}", value)
    value = own.clone()
    dist.broadcast(value, src=1)
    note("broadcast", value)
    value = own.clone()
    dist.reduce(value, dst=1)
    note("reduce", *([value] if rank == 1 else []), torch.zeros(1))
    slots = [torch.zeros(4) for _ in range(n)]
    dist.all_gather(slots, own)
    note("all_gather", *slots)
    whole = torch.zeros(4 * n)
    whole[4 * rank : 4 * rank + 4] = own
    dist.all_gather_into_tensor(whole, whole[4 * rank : 4 * rank + 4])  # in place, as Megatron's parameters are gathered
    note("all_gather_into_tensor", whole)
    part = torch.zeros(4 // n)
    dist.reduce_scatter_tensor(part, own.clone())
    note("reduce_scatter_tensor", part)
    dist.reduce_scatter(part, [p.clone() for p in own.chunk(n)])
    note("reduce_scatter", part)
    sent = [[1, 3], [2, 2]]
    wanted = [sizes[rank] for sizes in sent]
    into = torch.zeros(sum(wanted))
    dist.all_to_all_single(into, own, wanted, sent[rank])
    note("all_to_all_single", into)
    slots = [torch.zeros(4) for _ in range(n)] if rank == 0 else None
    dist.gather(own, slots, dst=0)
    note("gather", *(slots or [torch.zeros(1)]))
    dist.scatter(part, list(own.chunk(n)) if rank == 1 else None, src=1)
    note("scatter", part)
    objects: list = [None] * n
    dist.all_gather_object(objects, {"rank": rank, "text": "x" * rank})
    found["objects"] = [float(o["rank"] + len(o["text"])) for o in objects]
    pair = dist.new_group([0, 1])
    work = dist.isend(own, 1 - rank, group=pair)
    dist.recv(value, 1 - rank, group=pair)
    work.wait()
    note("message", value)
    return found


def test_operations_do_what_gloos_do():
    assert run_lockstep(2, every_operation) == run_ranks(2, every_operation)


def own_state(seed: int) -> tuple[int, str, list[float]]:
    place = groups.initialize(ModelConfig(tensor_model_parallel_size=2, pipeline_model_parallel_size=2), seed)
    torch.manual_seed(100 + place.rank)
    drawn = []
    for _ in range(2):
        dist.barrier()
        drawn.append(torch.rand(()).item())
    return place.tensor_rank + 2 * place.pipeline_rank + 4 * place.data_rank, os.environ["RANK"], drawn


def test_a_rank_has_groups_a_generator_and_an_environment_of_its_own():
    before = torch.get_rng_state(), dict(os.environ)
    found = run_lockstep(8, own_state, 1)
    for rank, (_, variable, drawn) in enumerate(found):
        generator = torch.Generator().manual_seed(100 + rank)
        assert drawn == [torch.rand((), generator=generator).item(), torch.rand((), generator=generator).item()]
        assert variable == str(rank)
    assert [place for place, *_ in found] == [0, 1, 4, 5, 2, 3, 6, 7]  # Megatron's order: tensor, data, pipeline
    assert torch.equal(torch.get_rng_state(), before[0])
    assert dict(os.environ) == before[1]
    assert not dist.is_initialized()


def rank_1_leaves() -> None:
    if dist.get_rank() != 1:
        dist.all_reduce(torch.zeros(3))


def receive_first() -> None:
    """Each rank receives from the next before it sends."""
    n, rank = dist.get_world_size(), dist.get_rank()
    dist.recv(torch.zeros(2), (rank + 1) % n)
    dist.send(torch.zeros(2), (rank - 1) % n)


def fail_on_rank_1() -> None:
    dist.barrier()
    if dist.get_rank() == 1:
        raise ValueError("the cause")
    dist.barrier()


@pytest.mark.parametrize(
    ("function", "error", "said"),
    [
        (
            rank_1_leaves,
            Deadlock,
            r"2 of 3 ranks wait for ranks that do not come; 1 have ended:\n"
            r"  rank 0 waits for \(1,\): all_reduce SUM \(3,\) float32, collective 0 of group \(0, 1, 2\)\n"
            r"  rank 2 waits for \(1,\)",
        ),
        (receive_first, Deadlock, r"3 of 3 (.|\n)*rank 2 waits for \(0,\): receive from rank 0, \(2,\) float32"),
        (fail_on_rank_1, RanksFailed, r"rank 1 of 3: (.|\n)*ValueError: the cause"),
    ],
)
def test_a_world_that_cannot_go_on_says_why(function, error, said):
    with pytest.raises(error, match=said):
        run_lockstep(3, function)


def meet(mine: str) -> None:
    """Rank 1 does as `mine` says, rank 0 an all-reduce of four numbers and then a broadcast from itself."""
    value = torch.zeros(4)
    own = mine if dist.get_rank() == 1 else ""
    if own == "order":
        dist.broadcast(value, src=0)
    dist.all_reduce(
        torch.zeros(5) if own == "shape" else value.double() if own == "dtype" else value,
        op=dist.ReduceOp.MAX if own == "operation" else dist.ReduceOp.SUM,
    )
    if own != "order":
        dist.broadcast(value, src=1 if own == "root" else 0)


@pytest.mark.parametrize(
    ("mine", "said"),
    [
        ("shape", r"collective 0 .* came with all_reduce SUM \(4,\) float32, rank 1 with all_reduce SUM \(5,\) float32"),
        ("dtype", r"rank 1 with all_reduce SUM \(4,\) float64"),
        ("operation", r"rank 1 with all_reduce MAX \(4,\) float32"),
        ("order", r"came with all_reduce SUM \(4,\) float32, rank 1 with broadcast from 0 \(4,\) float32"),
        (
            "root",
            r"collective 1 of group \(0, 1\): rank 0 came with broadcast from 0 \(4,\) float32, rank 1 with broadcast from 1",
        ),
    ],
)
def test_ranks_that_disagree_are_told(mine, said):
    with pytest.raises(Mismatch, match=said):
        run_lockstep(2, meet, mine)


def send_to_nobody() -> None:
    if dist.get_rank() == 0:
        dist.isend(torch.zeros(3), 1)


def send_three_for_two() -> None:
    if dist.get_rank() == 0:
        dist.send(torch.zeros(3), 1)
    else:
        dist.recv(torch.zeros(2), 0)


def test_messages_have_two_sides():
    with pytest.raises(Untaken, match=r"rank 0 waits for \(1,\): send to rank 1, \(3,\) float32"):
        run_lockstep(2, send_to_nobody)
    with pytest.raises(Mismatch, match=r"from rank 0 to rank 1: sent \(3,\) float32, received as \(2,\) float32"):
        run_lockstep(2, send_three_for_two)
