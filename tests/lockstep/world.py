"""Lockstep ranks: runs a function on N ranks in this process, with real numbers, for tests of parallel code.

    def total(offset):
        value = torch.tensor(dist.get_rank() + offset)
        dist.all_reduce(value)
        return value.item()

    def test_total():
        assert run_lockstep(64, total, 10) == [sum(range(64)) + 640] * 64

Ranks are threads of which one runs at a time, until it waits for others; then the one that could go on first does, so a failure
is the same every time. What a process has one of (torch.distributed's groups, Megatron's, ...) is swapped with the rank, and
the code under test needs no change. What may pass or hang on gloo is an error here, by name: ranks that meet with different
operations, shapes, dtypes or roots, ranks that wait for each other, messages that nobody took.

Not seen here: races, the order of NCCL's launches, streams, signals, saving to disk (it forks). For these there are real ranks
(tests/parallel/ranks.py).
"""

from __future__ import annotations

import gc
import os
import threading
import traceback
from collections import Counter, deque
from collections.abc import Callable
from datetime import timedelta
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist
from megatron.core import parallel_state

from nemo_amft.parallel import platform
from tests.lockstep import group
from tests.lockstep.exchange import Exchange, Key, Pending
from tests.lockstep.rank_state import RankStates
from tests.parallel.ranks import RanksFailed


class Deadlock(RanksFailed):
    """Nobody can go on; the message says who waits for whom with what."""


class _Aborted(BaseException):
    """Ends a rank because another one has failed."""


def run_lockstep(n: int, function: Callable[..., Any], *args: Any, **kwargs: Any) -> list[Any]:
    """Call `function(*args, **kwargs)` on `n` ranks and return their results in the order of ranks.

    Arguments and results are the ranks' own objects, not copies: what is passed in may collect what ranks say.

    Skips the test where there is a GPU.

    Raises:
        RanksFailed: a rank raised. Deadlock, Mismatch, Untaken are kinds of it.
    """
    if platform.is_gpu():
        pytest.skip("lockstep ranks share a CPU: hide the GPU with CUDA_VISIBLE_DEVICES=")
    assert not dist.is_initialized(), "this process is a rank of another world"
    assert not parallel_state.is_initialized(), "this process has Megatron's groups of another world"
    platform.install()
    return World(n).run(function, args, kwargs)


class World:
    """Ranks and their turns. `exchange` and `wait` are for the process groups."""

    def __init__(self, size: int):
        self.size, self.exchange = size, Exchange(self._completed)
        self._states = RankStates(size)
        self._turn = [threading.Event() for _ in range(size)]
        self._current = -1
        self._ready: deque[int] = deque(range(size))
        self._waiting: dict[int, Pending] = {}
        self._ended: set[int] = set()
        self._groups: Counter = Counter()
        self._results: list[Any] = [None] * size
        self._failure: RanksFailed | None = None

    def run(self, function: Callable[..., Any], args: tuple, kwargs: dict[str, Any]) -> list[Any]:
        before = threading.stack_size(64 << 20)
        threads = [threading.Thread(target=self._rank, args=(r, function, args, kwargs), daemon=True) for r in range(self.size)]
        environment = {"WORLD_SIZE": str(self.size), "LOCAL_WORLD_SIZE": str(self.size), "OMP_NUM_THREADS": "1"}
        numbers = torch.get_num_threads()
        try:
            with (
                patch.dict(os.environ, environment | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}),
                patch.object(dist, "new_group", _new_group),
                patch.object(group, "running", self),
                patch.object(gc, "collect"),  # Megatron's checkpoints ask for it on every rank: here of the objects of all
                patch("sys.excepthook"),  # torch puts the rank before its errors
            ):
                for thread in threads:
                    thread.start()
                self._pass_on()
                for thread in threads:
                    thread.join()
        finally:
            self._states.restore()
            torch.set_num_threads(numbers)
            threading.stack_size(before)
        if self._failure is not None:
            raise self._failure
        self.exchange.require_nothing_left()
        return self._results

    def group_key(self, rank: int, ranks: tuple[int, ...]) -> Key:
        """Of the group that `rank` makes now: groups of the same ranks are made in the same order on each of them."""
        self._groups[rank, ranks] += 1
        return ranks, self._groups[rank, ranks]

    def wait(self, pending: Pending) -> None:
        """The rank whose turn it is waits; others go on meanwhile."""
        if self._failure is not None:
            raise _Aborted
        if pending.done:
            return
        rank = pending.rank
        assert rank == self._current, (rank, self._current)
        self._waiting[rank] = pending
        self._states.keep(rank)
        self._pass_on()
        self._take_turn(rank)
        if self._failure is not None:
            raise _Aborted

    def _completed(self, pending: Pending) -> None:
        if self._waiting.get(pending.rank) is pending:
            del self._waiting[pending.rank]
            self._ready.append(pending.rank)

    def _take_turn(self, rank: int) -> None:
        self._turn[rank].wait()
        self._turn[rank].clear()

    def _pass_on(self) -> None:
        """Let the next rank go on; if one has failed, the next that has to be ended."""
        left = [rank for rank in range(self.size) if rank not in self._ended] if self._failure or not self._ready else []
        if not self._failure and not self._ready and left:
            self._failure = Deadlock(self._who_waits())
        if self._failure is None and self._ready:
            rank = self._ready.popleft()
        elif left:
            rank = left[0]
        else:
            return
        self._current = rank
        self._states.put(rank)
        self._turn[rank].set()

    def _who_waits(self) -> str:
        lines = [f"  {pending}" for _, pending in sorted(self._waiting.items())]
        ended = f"; {len(self._ended)} have ended" if self._ended else ""
        more = [f"  and {len(lines) - 16} more"] if len(lines) > 16 else []
        return "\n".join([f"{len(lines)} of {self.size} ranks wait for ranks that do not come{ended}:", *lines[:16], *more])

    def _rank(self, rank: int, function: Callable[..., Any], args: tuple, kwargs: dict[str, Any]) -> None:
        """Body of one rank."""
        self._take_turn(rank)
        try:
            if self._failure is None:
                torch._C._distributed_c10d._set_thread_isolation_mode(True)  # names of groups are each thread's own
                dist.init_process_group(
                    group.BACKEND, store=dist.HashStore(), rank=rank, world_size=self.size, timeout=timedelta(hours=1)
                )
                self._results[rank] = function(*args, **kwargs)
        except _Aborted:
            pass
        except BaseException as error:
            if self._failure is None:
                self._failure = _failure(rank, self.size, error)
        finally:
            self._ended.add(rank)
            self._pass_on()


def _failure(rank: int, size: int, error: BaseException) -> RanksFailed:
    text = f"rank {rank} of {size}: {''.join(traceback.format_exception(error))}"
    failure = type(error)(text) if isinstance(error, RanksFailed) else RanksFailed(text)
    failure.__cause__ = error
    return failure


_torch_new_group = dist.new_group


def _new_group(*args: Any, backend: str | None = None, **kwargs: Any) -> Any:
    """Whatever backend is asked for."""
    return _torch_new_group(*args, backend=group.BACKEND, **kwargs)
