"""Gathers the shards of a model's parameters to every rank, several parameters in one collective and in bounded memory."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from nemo_amft.parallel import platform

DEFAULT_BYTES = 2**28
"""Of a bucket, where nobody says otherwise: large enough for collectives to run at full speed."""


class Shard(NamedTuple):
    """One parameter as a tensor-parallel rank holds it; on every rank of a pipeline stage alike but for its values."""

    name: str
    owner: int
    """Pipeline rank that has it."""
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.numel * self.dtype.itemsize


def gathered(
    own: Mapping[str, Tensor], tp_group: dist.ProcessGroup, pp_group: dist.ProcessGroup, bucket_bytes: int
) -> Iterator[tuple[str, Tensor]]:
    """Yield (name, shards) for every parameter of all pipeline stages, on every rank in the same order.

    `shards` has shape (tensor-parallel size, *shape of a shard), in rank order; of a replicated parameter they are equal.
    Collective over both groups, and so to be exhausted by all ranks alike.

    A bucket takes one broadcast over `pp_group` and one all-gather over `tp_group` (gloo: a broadcast a rank). All buckets pass
    through one buffer of at most `bucket_bytes`, or of the largest parameter: what is yielded is good until the next step. On
    one rank nothing is copied.
    """
    tp_size, tp_rank = tp_group.size(), tp_group.rank()
    if tp_size == pp_group.size() == 1:
        yield from ((name, tensor[None]) for name, tensor in own.items())
        return
    plan = buckets(_of_all_stages(own, pp_group), bucket_bytes // tp_size)
    room = max(sum(shard.nbytes for shard in bucket) for bucket in plan) * tp_size
    buffer = torch.empty(room, dtype=torch.uint8, device=platform.device())
    for bucket in plan:
        owner, dtype, length = bucket[0].owner, bucket[0].dtype, sum(shard.numel for shard in bucket)
        flat = buffer[: tp_size * length * dtype.itemsize].view(dtype).view(tp_size, length)
        pieces = flat.split([shard.numel for shard in bucket], dim=1)
        if owner == pp_group.rank():
            for shard, piece in zip(bucket, pieces, strict=True):
                piece[tp_rank].view(shard.shape).copy_(own[shard.name])
        if pp_group.size() > 1:
            dist.broadcast(flat[tp_rank], group_src=owner, group=pp_group)
        if tp_size > 1:
            (all_gather if platform.is_gpu() else all_broadcast)(flat, tp_group)
        for shard, piece in zip(bucket, pieces, strict=True):
            yield shard.name, piece.unflatten(1, shard.shape)


def all_gather(flat: Tensor, group: dist.ProcessGroup) -> None:
    """Complete `flat`, of which each rank of `group` has its own row, in place."""
    dist.all_gather_into_tensor(flat.view(-1), flat[group.rank()], group=group)


def all_broadcast(flat: Tensor, group: dist.ProcessGroup) -> None:
    """The same for gloo, whose all-gather goes through copies of everything and takes two or three times as long."""
    for work in [dist.broadcast(row, group_src=rank, group=group, async_op=True) for rank, row in enumerate(flat)]:
        work.wait()


def buckets(shards: Sequence[Shard], most: int) -> list[list[Shard]]:
    """Cut `shards`, in order, where owner or dtype change or a bucket would exceed `most` bytes; a larger one is alone."""
    found: list[list[Shard]] = []
    size = 0
    for shard in shards:
        if not found or (found[-1][0].owner, found[-1][0].dtype) != (shard.owner, shard.dtype) or size + shard.nbytes > most:
            found.append([])
            size = 0
        found[-1].append(shard)
        size += shard.nbytes
    return found


def _of_all_stages(own: Mapping[str, Tensor], pp_group: dist.ProcessGroup) -> list[Shard]:
    """Every stage's parameters, in the same order on every rank."""
    described = [Shard(name, pp_group.rank(), tuple(tensor.shape), tensor.dtype) for name, tensor in own.items()]
    if pp_group.size() == 1:
        return described
    stages: list[list[Shard]] = [[] for _ in range(pp_group.size())]
    dist.all_gather_object(stages, described, group=pp_group)
    return [shard for stage in stages for shard in stage]
