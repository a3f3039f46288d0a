"""What ranks of one process say to one another: collectives that gather their ranks, messages that look for their other side.

Knows nothing of threads or of torch.distributed. A communication is complete once everybody has come; the last one to come
moves the data for all.
"""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from tests.parallel.ranks import RanksFailed


class Mismatch(RanksFailed):
    """Two ranks meet with different operations, shapes, dtypes or roots."""


class Untaken(RanksFailed):
    """All ranks have ended, and a collective or message still waits for its other side."""


@dataclass
class Pending:
    """One rank's part in a communication, complete or not."""

    rank: int
    what: str
    absent: Callable[[], list[int]]
    """Ranks that have yet to come."""
    done: bool = False

    def __str__(self) -> str:
        return f"rank {self.rank} waits for {names(self.absent())}: {self.what}"


@dataclass
class _Meeting:
    """A collective that is gathering its ranks."""

    what: str
    group: tuple[int, ...]
    parts: dict[int, Any] = field(default_factory=dict)
    pending: list[Pending] = field(default_factory=list)

    def absent(self) -> list[int]:
        return [rank for rank in self.group if rank not in self.parts]


Key = tuple[tuple[int, ...], int]
"""A process group: its global ranks, and the how many-th group of these ranks it is on each of them."""


class Exchange:
    """All that is under way. `completed` is told of each part that is complete, in the order of ranks that came."""

    def __init__(self, completed: Callable[[Pending], None]):
        self._completed = completed
        self._meetings: dict[tuple[Key, int], _Meeting] = {}
        self._numbers: Counter = Counter()
        self._open: dict[tuple, deque[tuple[torch.Tensor, Pending]]] = defaultdict(deque)

    def join(self, key: Key, rank: int, what: str, part: Any, move: Callable[[list[Any]], None]) -> Pending:
        """Global `rank` takes part in the next collective of its group. `move` gets the parts of all, in the group's order.

        Raises Mismatch where `what` is not what the others came with.
        """
        group, _ = key
        number = self._numbers[key, rank]
        self._numbers[key, rank] += 1
        meeting = self._meetings.setdefault((key, number), _Meeting(what, group))
        label = f"collective {number} of group {names(group)}"
        if meeting.what != what:
            (low, first), (high, second) = sorted([(min(meeting.parts), meeting.what), (rank, what)])
            raise Mismatch(f"{label}: rank {low} came with {first}, rank {high} with {second}")
        pending = Pending(rank, f"{what}, {label}", meeting.absent)
        meeting.parts[rank] = part
        meeting.pending.append(pending)
        if not meeting.absent():
            del self._meetings[key, number]
            _quietly(move, [meeting.parts[member] for member in group])
            self._complete(meeting.pending)
        return pending

    def message(self, key: Key, source: int, target: int, tag: int, tensor: torch.Tensor, sending: bool) -> Pending:
        """A message between global ranks, from either side. In order, for each group, pair and tag.

        A send is complete when it is received, as it may be with NCCL, and takes what the buffer holds by then.
        Raises Mismatch where shape or dtype is not the one sent.
        """
        rank, other = (source, target) if sending else (target, source)
        way = "send to" if sending else "receive from"
        pending = Pending(rank, f"{way} rank {other}, {like(tensor)}, in group {names(key[0])}", lambda: [other])
        others = self._open[key, source, target, tag, not sending]
        if not others:
            self._open[key, source, target, tag, sending].append((tensor, pending))
            return pending
        theirs, their_pending = others.popleft()
        out, into = (tensor, theirs) if sending else (theirs, tensor)
        if like(out) != like(into):
            raise Mismatch(f"message from rank {source} to rank {target}: sent {like(out)}, received as {like(into)}")
        _quietly(lambda pair: copy(*pair), (into, out))
        self._complete([their_pending, pending])
        return pending

    def require_nothing_left(self) -> None:
        """Raises Untaken where somebody never came: nobody waits for what has not been waited for."""
        left = [pending for meeting in self._meetings.values() for pending in meeting.pending]
        left += [pending for queue in self._open.values() for _, pending in queue]
        if left:
            shown = "\n".join(f"  {pending}" for pending in left[:16])
            raise Untaken(f"{len(left)} communications without the other side when all ranks had ended:\n{shown}")

    def _complete(self, pendings: Sequence[Pending]) -> None:
        for pending in pendings:
            pending.done = True
            self._completed(pending)


def like(tensor: torch.Tensor) -> str:
    """What two sides of a communication must have alike."""
    return f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"


def names(ranks: Sequence[int]) -> str:
    """Ranks as a message shows them."""
    return str(tuple(ranks)) if len(ranks) <= 8 else f"({', '.join(map(str, ranks[:4]))}, ... {len(ranks)} ranks)"


def copy(into: torch.Tensor, source: torch.Tensor) -> None:
    """Data only, as a communication moves it."""
    into.detach().copy_(source.detach().reshape(into.shape))


def _quietly(move: Callable[[Any], None], parts: Any) -> None:
    """Without autograd, and whatever stands in for devices on the rank that happens to come last."""
    with torch.no_grad(), torch._C.DisableTorchFunction():
        move(parts)
