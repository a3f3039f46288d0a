"""Sums across ranks. Every loss and metric is (sum, count), added up once over the ranks that hold distinct tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.distributed as dist
from megatron.core import parallel_state

from nemo_amft.parallel import platform
from nemo_amft.parallel.groups import Place

Sums = dict[str, tuple[float, float]]
"""name -> (sum, count)"""


def add_sums(parts: Sequence[Mapping[str, tuple[torch.Tensor, torch.Tensor]]], names: Sequence[str]) -> torch.Tensor:
    """Add the (sum, count) pairs of micro-batches. Returns float64 [len(names), 2] on the CPU; zeros without parts."""
    total = torch.zeros(len(names), 2, dtype=torch.float64)
    for part in parts:
        assert set(part) == set(names), (sorted(part), sorted(names))
        total += torch.stack([torch.stack([torch.as_tensor(x).detach().double() for x in part[name]]) for name in names]).cpu()
    return total


def reduce_sums(parts: Sequence[Mapping[str, tuple[torch.Tensor, torch.Tensor]]], names: Sequence[str], place: Place) -> Sums:
    """Sum over the whole batch, the same on every rank.

    Of the ranks that saw the same outputs (tensor and context parallel) one contributes, and of a pipeline only the last stage
    has parts, so one all-reduce over the world adds each token once.
    """
    speaks = place.is_last_stage and place.tensor_rank == 0 and place.context_rank == 0
    total = add_sums(parts if speaks else [], names)
    total = total.to(platform.device())
    dist.all_reduce(total)
    return {name: (float(s), float(n)) for name, (s, n) in zip(names, total.tolist(), strict=True)}


def means(sums: Sums, prefix: str = "") -> dict[str, float]:
    """sum / count of each metric, and of a number of tokens (`.../..._tokens`) the sum itself; metrics with count 0 are left
    out: there is no mean of nothing."""
    return {prefix + name: s if name.endswith("_tokens") else s / n for name, (s, n) in sums.items() if n}


def broadcast_from_last_stage(values: list[torch.Tensor], shapes: Sequence[int], place: Place) -> list[torch.Tensor]:
    """Give every pipeline stage the last stage's per-sequence float32 tensors; `shapes` are their lengths, known everywhere."""
    if place.pipeline_size == 1:
        return values
    flat = torch.cat([torch.zeros(0), *values]) if place.is_last_stage else torch.empty(sum(shapes), dtype=torch.float32)
    flat = flat.to(platform.device())
    group = parallel_state.get_pipeline_model_parallel_group()
    dist.broadcast(flat, parallel_state.get_pipeline_model_parallel_last_rank(), group=group)
    return list(flat.cpu().split(list(shapes)))


def all_agree(mine: bool) -> bool:
    """Whether every rank says so: for a decision that collectives hang on."""
    votes = torch.tensor(int(mine), device=platform.device())
    dist.all_reduce(votes, op=dist.ReduceOp.MIN)
    return bool(votes.item())


def mean_and_std(values: Sequence[torch.Tensor]) -> tuple[float, float]:
    """Mean and standard deviation over all elements of all data-parallel ranks, in float64."""
    flat = torch.cat([v.double().reshape(-1) for v in values]) if values else torch.zeros(0, dtype=torch.float64)
    stats = torch.stack([flat.sum(), (flat * flat).sum(), torch.tensor(float(flat.numel()), dtype=torch.float64)])
    stats = stats.to(platform.device())
    dist.all_reduce(stats, group=parallel_state.get_data_parallel_group())
    total, squares, count = stats.tolist()
    mean = total / max(count, 1.0)
    return mean, max(squares / max(count, 1.0) - mean * mean, 0.0) ** 0.5
