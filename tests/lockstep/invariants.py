"""What must hold over a whole world, whatever its layout, from the reports of all its ranks (examination.py)."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from nemo_amft.config.architecture import from_hub
from nemo_amft.data.batching import Batch
from nemo_amft.planning.parameters import buffer_elements, stages
from tests.lockstep.examination import Ids, Report
from tests.lockstep.layouts import Layout, hub_config


@dataclass(frozen=True)
class Examined:
    """A world, what went into it, and what its ranks said."""

    layout: Layout
    tensors: dict[str, torch.Tensor]
    """Hub tensors, of ids."""
    batch: Batch
    reports: Sequence[Report]

    @cached_property
    def total(self) -> int:
        return sum(t.numel() for t in self.tensors.values())

    @cached_property
    def expected(self) -> np.ndarray:
        """How often each id is to be counted: once; 0 itself never, nor an output layer where there is none."""
        once = np.ones(self.total + 1, dtype=np.int64)
        once[0] = 0
        if self.layout.critic:
            once[self.tensors["lm_head.weight"].long().reshape(-1).numpy()] = 0
        return once

    def name_of(self, one: int) -> str:
        """Of the tensor that an id is in."""
        return next(name for name, t in self.tensors.items() if t.reshape(-1)[0] <= one <= t.reshape(-1)[-1])


Fault = str | None


def product_groups_cover_the_world(seen: Examined) -> Fault:
    members = sorted(rank for group in {r.product_group for r in seen.reports} for rank in group)
    return None if members == list(range(seen.layout.ranks)) else f"members {members}"


def inner_product_counts_each_element_once(seen: Examined) -> Fault:
    return _not_once(seen, lambda report: report.owned)


def gradient_norm_counts_each_element_once(seen: Examined) -> Fault:
    return _not_once(seen, lambda report: report.in_norm)


def _not_once(seen: Examined, of: Callable[[Report], Ids]) -> Fault:
    for group in {r.product_group for r in seen.reports}:
        counts = sum(np.bincount(of(seen.reports[rank]), minlength=seen.total + 1) for rank in group)
        wrong = np.nonzero(counts != seen.expected)[0]
        if len(wrong):
            return f"{len(wrong)} elements of {seen.total}: one of {seen.name_of(wrong[0])} {counts[wrong[0]]} times"
    return None


def inner_product_is_exact_on_every_rank(seen: Examined) -> Fault:
    exact = float(np.sum((np.arange(seen.total + 1, dtype=np.float64) * seen.expected) ** 2))
    found = {r.square for r in seen.reports}
    return None if found == {exact} else f"{sorted(found)[:3]} for {exact}"


def gradients_are_summed_over_the_ranks_that_have_a_part(seen: Examined) -> Fault:
    """With 1 from everybody: over data and context ranks; over tensor ranks too where a whole parameter sees a part of the
    tokens (norms under sequence parallelism) or of the heads (their norms); twice where it is a tied copy."""
    case, layout = seen.layout.case, seen.layout
    for report in seen.reports:
        for ids, counts in report.contributions:
            if not len(ids):
                continue
            name = seen.name_of(ids[0])
            times = layout.data * case.context
            if ("norm" in name and case.sequence_parallel) or ".q_norm." in name or ".k_norm." in name:
                times *= case.tensor
            if layout.tied and case.pipeline > 1 and not layout.critic and name == "model.embed_tokens.weight":
                times *= 2
            if set(counts.tolist()) != {times}:
                return f"rank {report.place.rank}, {name}: {sorted(set(counts.tolist()))} contributions, not {times}"
    return None


def each_trained_token_is_computed_once(seen: Examined) -> Fault:
    """Over data and context ranks, alike on each tensor rank and stage."""
    trained = Counter(t for s in seen.batch.sequences for t, on in zip(s.tokens, s.trained, strict=True) if on)
    lanes: dict[tuple[int, int], Counter] = defaultdict(Counter)
    for r in seen.reports:
        lanes[r.place.tensor_rank, r.place.pipeline_rank].update(r.tokens)
    for lane, tokens in lanes.items():
        if tokens != trained:
            return f"tensor and pipeline rank {lane}: {len(tokens - trained)} too often, {len(trained - tokens)} lacking"
    return None


def sums_and_counts_are_the_global_batchs(seen: Examined) -> Fault:
    trained = [t for s in seen.batch.sequences for t, on in zip(s.tokens, s.trained, strict=True) if on]
    found = {r.label_sums for r in seen.reports}
    return None if found == {(sum(trained), len(trained))} else f"{found} for {(sum(trained), len(trained))}"


def micro_batches_agree_within_a_replica(seen: Examined) -> Fault:
    found = defaultdict(set)
    for r in seen.reports:
        found[r.place.data_rank].add(r.micro_batches)
    return None if all(len(counts) == 1 for counts in found.values()) else f"{dict(found)}"


def a_sync_brings_every_tensor_once(seen: Examined) -> Fault:
    """To every rank, as it was, in one order. A critic has none."""
    if seen.layout.critic:
        return None
    if len({tuple(r.synced) for r in seen.reports}) > 1:
        return "ranks differ"
    synced = seen.reports[0].synced
    if sorted(name for name, _ in synced) != sorted(seen.tensors):
        return f"{len(synced)} tensors of {len(seen.tensors)}"
    return next((f"{name} is not as it was" for name, equal in synced if not equal), None)


def checkpoint_pieces_tile_every_tensor(seen: Examined) -> Fault:
    """Each element is written by one rank."""
    written: dict[str, np.ndarray] = {}
    for r in seen.reports:
        for piece in r.pieces:
            cells = written.setdefault(piece.key, np.zeros(piece.shape, dtype=np.int8))
            if cells.shape != piece.shape:
                return f"{piece.key} has shapes {cells.shape} and {piece.shape}"
            if piece.written:
                cells[tuple(slice(o, o + n) for o, n in zip(piece.offset, piece.size, strict=True))] += 1
    for key, cells in written.items():
        if not (cells == 1).all():
            return f"{key}: {int((cells == 0).sum())} elements unwritten, {int((cells > 1).sum())} written twice"
    return None


def saved_main_weights_are_the_models(seen: Examined) -> Fault:
    kept = [weight for r in seen.reports for weight in r.main_weights]
    if not kept and seen.layout.case.distributed_optimizer:
        return "no main weights"
    return next((key for key, equal in kept if not equal), None)


def buffers_are_the_plans(seen: Examined) -> Fault:
    layout, case = seen.layout, seen.layout.case
    architecture = from_hub(hub_config(layout.tied, layout.family).to_dict())
    planned = stages(architecture, case.model, output=not layout.critic)
    sharing = layout.data * case.context if case.distributed_optimizer else 1
    for r in seen.reports:
        chunks = planned[r.place.pipeline_rank]
        expected = sum(map(sum, chunks)), buffer_elements(chunks, sharing, case.distributed_optimizer)
        if r.elements != expected:
            return f"rank {r.place.rank}: {r.elements} elements of parameters and buffers, planned {expected}"
    return None


INVARIANTS = (
    product_groups_cover_the_world,
    inner_product_counts_each_element_once,
    gradient_norm_counts_each_element_once,
    inner_product_is_exact_on_every_rank,
    gradients_are_summed_over_the_ranks_that_have_a_part,
    each_trained_token_is_computed_once,
    sums_and_counts_are_the_global_batchs,
    micro_batches_agree_within_a_replica,
    a_sync_brings_every_tensor_once,
    checkpoint_pieces_tile_every_tensor,
    saved_main_weights_are_the_models,
    buffers_are_the_plans,
)


def faults(seen: Examined) -> Iterator[tuple[str, str]]:
    """(invariant, what is wrong) of each that does not hold."""
    for invariant in INVARIANTS:
        if fault := invariant(seen):
            yield invariant.__name__, fault
