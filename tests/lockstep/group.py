"""torch.distributed's process group for ranks of one process, registered as backend "lockstep".

Every method describes what must be alike on all ranks, and how data moves once all have come; `exchange.Exchange` does the
rest.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d as c10d

from tests.lockstep.exchange import Mismatch, Pending, copy, like

if TYPE_CHECKING:
    from tests.lockstep.world import World

BACKEND = "lockstep"

running: World | None = None
"""Whose ranks make groups now."""


class Waiting(dist.Work):
    """A communication under way: waiting for it lets other ranks go on."""

    def __init__(self, world: World, parts: Sequence[Pending]):
        super().__init__()
        self._world, self._parts = world, parts

    def wait(self, timeout=None) -> bool:
        for part in self._parts:
            self._world.wait(part)
        return True

    def is_completed(self) -> bool:
        return all(part.done for part in self._parts)

    def is_success(self) -> bool:
        return self.is_completed()


class LockstepGroup(dist.ProcessGroup):
    """A group as one of its ranks has it."""

    def __init__(self, world: World, ranks: Sequence[int], own: int):
        super().__init__(own, len(ranks))
        self._world, self._ranks, self._own = world, tuple(ranks), own
        self._key = world.group_key(self._ranks[own], self._ranks)

    # What torch asks of a group.

    def size(self) -> int:
        return len(self._ranks)

    def rank(self) -> int:
        return self._own

    @property
    def pg_name(self) -> str:
        return c10d._world.pg_names[self]

    @property
    def group_name(self) -> str:
        return self.pg_name

    def getBackendName(self) -> str:
        return BACKEND

    # Collectives.

    def _join(self, what: str, part: Any, move: Callable[[list[Any]], None]) -> Waiting:
        pending = self._world.exchange.join(self._key, self._ranks[self._own], what, part, move)
        return Waiting(self._world, [pending])

    def _each(self, works: Sequence[Waiting]) -> Waiting:
        return Waiting(self._world, [part for work in works for part in work._parts])

    def allreduce(self, tensors, opts=None):
        (tensor,), op = tensors, _op(opts)

        def move(parts):
            whole = _reduced(parts, op)
            for part in parts:
                copy(part, whole)

        return self._join(f"all_reduce {op} {like(tensor)}", tensor, move)

    def allreduce_coalesced(self, tensors, opts=None):
        return self._each([self.allreduce([tensor], opts) for tensor in tensors])

    def reduce(self, tensors, opts):
        (tensor,), op, root = tensors, _op(opts), opts.rootRank
        return self._join(
            f"reduce {op} to {self._ranks[root]} {like(tensor)}",
            tensor,
            lambda parts: copy(parts[root], _reduced(parts, op)),
        )

    def broadcast(self, tensors, opts=None):
        (tensor,), root = tensors, opts.rootRank if opts is not None else 0

        def move(parts):
            for i, part in enumerate(parts):
                if i != root:
                    copy(part, parts[root])

        return self._join(f"broadcast from {self._ranks[root]} {like(tensor)}", tensor, move)

    def allgather(self, outputs, inputs, opts=None):
        (slots,), (tensor,) = outputs, inputs

        def move(parts):
            sources = [source.detach().clone() for _, source in parts]  # one may be a slot too
            for own, _ in parts:
                _fill(own, sources)

        return self._join(f"all_gather {like(tensor)}", (slots, tensor), move)

    def all_gather_single(self, output, tensor, opts=None):
        self._require(output.numel() == tensor.numel() * self.size(), "all_gather_into_tensor", tensor, output)
        return self.allgather([list(output.detach().view(-1).chunk(self.size()))], [tensor.detach().reshape(-1)])

    def all_gather_single_coalesced(self, outputs, inputs, opts=None):
        return self._each([self.all_gather_single(o, i) for o, i in zip(outputs, inputs, strict=True)])

    def reduce_scatter(self, outputs, inputs, opts=None):
        (output,), (pieces,), op = outputs, inputs, _op(opts)

        def move(parts):
            # All sums first: an output may lie within an input.
            sums = [_reduced([theirs[i] for _, theirs in parts], op) for i in range(len(parts))]
            _fill([own for own, _ in parts], sums)

        return self._join(f"reduce_scatter {op} {[like(piece) for piece in pieces]}", (output, pieces), move)

    def reduce_scatter_single(self, output, tensor, opts=None):
        self._require(tensor.numel() == output.numel() * self.size(), "reduce_scatter_tensor", tensor, output)
        pieces = list(tensor.detach().reshape(-1).chunk(self.size()))
        return self.reduce_scatter([output.detach().view(-1)], [pieces], opts)

    def reduce_scatter_single_coalesced(self, outputs, inputs, opts=None):
        return self._each([self.reduce_scatter_single(o, i, opts) for o, i in zip(outputs, inputs, strict=True)])

    def alltoall(self, outputs, inputs, opts=None):
        def move(parts):
            for i, (own, _) in enumerate(parts):
                _fill(own, [theirs[i] for _, theirs in parts])

        return self._join("all_to_all", (outputs, inputs), move)

    def all_to_all_single(self, output, tensor, output_sizes, input_sizes, opts=None):
        slots, pieces = (
            list(t.detach().split(list(sizes) or [t.size(0) // self.size()] * self.size()))
            for t, sizes in ((output, output_sizes), (tensor, input_sizes))
        )
        return self.alltoall(slots, pieces)

    def gather(self, outputs, inputs, opts):
        (tensor,), root = inputs, opts.rootRank
        return self._join(
            f"gather to {self._ranks[root]} {like(tensor)}",
            (outputs, tensor),
            lambda parts: _fill(parts[root][0][0], [source for _, source in parts]),
        )

    def scatter(self, outputs, inputs, opts):
        (tensor,), root = outputs, opts.rootRank
        return self._join(
            f"scatter from {self._ranks[root]} {like(tensor)}",
            (tensor, inputs),
            lambda parts: _fill([own for own, _ in parts], parts[root][1][0]),
        )

    def barrier(self, opts=None):
        return self._join("barrier", None, lambda _: None)

    # Messages.

    def send(self, tensors, peer, tag=0):
        return self._message(self._own, peer, tag, tensors, sending=True)

    def recv(self, tensors, peer, tag=0):
        return self._message(peer, self._own, tag, tensors, sending=False)

    def _message(self, source: int, target: int, tag: int, tensors: Sequence[torch.Tensor], sending: bool) -> Waiting:
        (tensor,) = tensors
        ends = self._ranks[source], self._ranks[target]
        return Waiting(self._world, [self._world.exchange.message(self._key, *ends, tag, tensor, sending)])

    def _require(self, fits: bool, kind: str, tensor: torch.Tensor, output: torch.Tensor) -> None:
        if not fits:
            raise Mismatch(f"{kind} by {self.size()} ranks: {like(tensor)} does not go into {like(output)}")


def _op(opts) -> str:
    op = dist.ReduceOp.SUM if opts is None else opts.reduceOp
    return next(name for name in _REDUCE if op == getattr(dist.ReduceOp, name))


_REDUCE: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "SUM": lambda stacked: stacked.sum(0, dtype=stacked.dtype),
    "AVG": lambda stacked: stacked.mean(0),
    "MAX": lambda stacked: stacked.amax(0),
    "MIN": lambda stacked: stacked.amin(0),
}


def _reduced(parts: Sequence[torch.Tensor], op: str) -> torch.Tensor:
    return _REDUCE[op](torch.stack([part.detach() for part in parts]))


def _fill(slots: Sequence[torch.Tensor], sources: Sequence[torch.Tensor]) -> None:
    for slot, source in zip(slots, sources, strict=True):
        if slot.numel() != source.numel() or slot.dtype != source.dtype:
            raise Mismatch(f"{like(source)} does not go into {like(slot)}")
        copy(slot, source)


def _create(options, _backend_options) -> LockstepGroup:
    assert running is not None, "a lockstep group outside run_lockstep"
    ranks = list(options.global_ranks_in_group) or range(options.group_size)
    return LockstepGroup(running, ranks, options.group_rank)


dist.Backend.register_backend(BACKEND, _create, extended_api=True, devices=["cpu"])
