"""Faults of Megatron-Core's distributed optimiser where it is saved and loaded, and how each is got round, on any device.

All are in megatron-core 0.16.1 and 0.19.2 alike.

1. Saving `fully_reshardable` lays the buckets of a gradient buffer end to end without the padding at their ends, then reads
   each parameter at its place with that padding. What lies behind the first padded bucket, main weights and moments, is saved
   from the wrong place, and zeros at the end. Buffers have several buckets with tied embeddings on more than one pipeline
   stage, and with overlapped gradient reduction. Megatron-LM pull request 5077 corrects it.
2. A rank whose shard is padding alone has no parameter, so torch's Adam does not count its steps there, and saving asserts that
   it has.
3. Loading asks the checkpoint for torch's per-parameter "step", which was saved among the parameter groups: KeyError.
4. Loading hands every parameter the same "step" tensor, which torch's Adam then increments once a parameter, so that the bias
   correction after a resume is silently wrong.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer

Places = dict[Any, tuple[int, int, int]]
"""Parameter -> (start, end) in a gradient buffer, and its bucket."""


@functools.cache
def install() -> None:
    """Mend 1, 3 and 4 for every optimiser of this process."""
    DistributedOptimizer.sharded_param_state_fully_reshardable = _saved_from_right_places(
        DistributedOptimizer.sharded_param_state_fully_reshardable
    )
    DistributedOptimizer._set_main_param_and_optimizer_states = _but_for_step(
        DistributedOptimizer._set_main_param_and_optimizer_states
    )
    DistributedOptimizer.load_state_dict = _with_own_steps(DistributedOptimizer.load_state_dict)


def without_padding(places: Places, buckets: Sequence[tuple[int, int]]) -> Places:
    """`places` once the padding at the ends of buckets is left out. `buckets`: elements of each, with and without padding."""
    before, padding = [], 0
    for padded, unpadded in buckets:
        before.append(padding)
        padding += padded - unpadded
    return {p: (start - before[bucket], end - before[bucket], bucket) for p, (start, end, bucket) in places.items()}


def _saved_from_right_places(sharded):
    @functools.wraps(sharded)
    def wrapped(self, model_sharded_state_dict, is_loading=False, metadata=None):
        held = [buffer.param_index_map for buffer in self.buffers]
        try:
            for buffer in self.buffers:
                buckets = [(bucket.grad_data.numel(), bucket.numel_unpadded) for bucket in buffer.buckets]
                buffer.param_index_map = without_padding(buffer.param_index_map, buckets)
            state = sharded(self, model_sharded_state_dict, is_loading, metadata)
        finally:
            for buffer, places in zip(self.buffers, held, strict=True):
                buffer.param_index_map = places
        if not is_loading and state is not None:
            _refuse_misplaced(self, state)
        return state

    return wrapped


def _refuse_misplaced(optimizer: DistributedOptimizer, state: Mapping[int, Mapping[str, Any]]) -> None:
    """Raises RuntimeError where this rank's main weights are not what `state` would bring back: another Megatron-Core may lay
    out its buffers otherwise, and a checkpoint that is wrong is noticed only when it is needed."""
    for index, parameter in enumerate(_parameters(optimizer)):
        if parameter not in optimizer.model_param_gbuf_map:
            continue
        place = optimizer._get_model_param_range_map(parameter)["param"]
        held = optimizer._get_main_param_and_optimizer_states(parameter)["param"]
        saved = state[index]["param"].data.flatten()[place.start : place.end]
        if not torch.equal(saved, held.detach().cpu()):
            raise RuntimeError(f"the optimiser's state of {state[index]['param'].key} would be saved from the wrong place")


def differing_weights(optimizer: DistributedOptimizer, state: Mapping[int, Mapping[str, torch.Tensor]]) -> int:
    """How many parameters of a loaded checkpoint have main weights (`state`) that are not the model's, as the model holds them.

    Compared as bfloat16, so that neither has to be of the precision that the other was saved in.
    """
    pairs = ((state[index]["param"], parameter) for index, parameter in enumerate(_parameters(optimizer)))
    return sum(not torch.equal(main.to(own.device, torch.bfloat16), own.to(torch.bfloat16)) for main, own in pairs)


def _parameters(optimizer: DistributedOptimizer) -> Iterator[torch.nn.Parameter]:
    """In the order by which a checkpoint numbers them."""
    for buffer in optimizer.buffers:
        yield from buffer.param_index_map


def count_steps_of_padding(optimizer: torch.optim.Optimizer) -> None:
    """Mend 2: where `optimizer` has no parameter give it one without elements, so that it counts its steps."""
    if any(group["params"] for group in optimizer.param_groups):
        return
    nothing = torch.nn.Parameter(torch.empty(0))
    nothing.grad = torch.zeros_like(nothing)
    optimizer.param_groups[0]["params"].append(nothing)


def _but_for_step(set_states):
    @torch.no_grad()
    @functools.wraps(set_states)
    def wrapped(self, model_param, tensors):
        held = [(state, state.pop("step")) for state in self.optimizer.state.values() if "step" in state]
        try:
            set_states(self, model_param, {key: value for key, value in tensors.items() if key != "step"})
        finally:
            for state, step in held:
                state["step"] = step

    return wrapped


def _with_own_steps(load_state_dict):
    @functools.wraps(load_state_dict)
    def wrapped(self, state_dict):
        load_state_dict(self, state_dict)
        for state in self.optimizer.state.values():
            if isinstance(state.get("step"), torch.Tensor):
                state["step"] = state["step"].detach().clone()

    return wrapped
