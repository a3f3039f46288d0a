"""What a process really holds, for comparison with a plan. The one file of planning/ that imports torch.

On a GPU the allocator tells; these count on a CPU, by the storages of tensors.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch


def held_bytes(ignored: set[int] = frozenset()) -> int:
    """Bytes of all tensors of this process, each storage once, those of addresses in `ignored` left out.

    Every tensor that Python knows counts, whoever holds it, with the gradients attached to it: nothing has to be listed.
    """
    return sum(size for address, size in _storages().items() if address not in ignored)


def held_addresses() -> set[int]:
    """Addresses of the storages that `held_bytes` counts, to leave out later what is there now."""
    return set(_storages())


def _storages() -> dict[int, int]:
    gc.collect()
    found: dict[int, int] = {}
    for thing in gc.get_objects():
        # By type: isinstance would ask lazily imported modules and other proxies for their class.
        if issubclass(type(thing), torch.Tensor):
            for tensor in (thing, thing.grad if thing.is_leaf else None, getattr(thing, "main_grad", None)):
                if tensor is not None and tensor.device.type != "meta":
                    storage = tensor.untyped_storage()
                    found[storage.data_ptr()] = storage.nbytes()
    found.pop(0, None)
    return found


@dataclass
class SavedBytes:
    """Bytes that autograd keeps for backward passes, each storage once."""

    ignored: set[int]
    now: int = 0
    peak: int = 0
    _holders: dict[int, int] = field(default_factory=dict)

    def pack(self, tensor: torch.Tensor) -> _Saved:
        storage = tensor.untyped_storage()
        address = storage.data_ptr()
        if address not in self.ignored:
            self._holders[address] = self._holders.get(address, 0) + 1
            if self._holders[address] == 1:
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
        return _Saved(tensor, address, storage.nbytes(), self._drop)

    def _drop(self, address: int, size: int) -> None:
        if address not in self.ignored:
            self._holders[address] -= 1
            if not self._holders[address]:
                self.now -= size


class _Saved:
    """A saved tensor whose end, when autograd frees the graph, is counted."""

    def __init__(self, tensor: torch.Tensor, address: int, size: int, drop: Callable[[int, int], None]):
        self.tensor, self._end = tensor, (address, size)
        self._drop = drop

    def __del__(self):
        self._drop(*self._end)


@contextlib.contextmanager
def saved_bytes(ignored: set[int]) -> Iterator[SavedBytes]:
    """Count what forward passes inside keep, `ignored` (weights) aside; `.peak` is the most at one time."""
    counted = SavedBytes(ignored)
    with torch.autograd.graph.saved_tensors_hooks(counted.pack, lambda saved: saved.tensor):
        yield counted


@contextlib.contextmanager
def allocated_bytes() -> Iterator[Callable[[], int]]:
    """Most bytes of torch's CPU allocator inside, above what was there before; call the result after the context."""
    from torch.profiler import ProfilerActivity, profile

    peak = 0
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        yield lambda: peak
    now = 0
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    for event in sorted(events, key=lambda e: e.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
