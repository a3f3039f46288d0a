"""Completions of all ranks, on all ranks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from nemo_amft.types import Completion


def gather_completions(own: Sequence[Completion], group: dist.ProcessGroup | None = None) -> list[Completion]:
    """Completions of all ranks of `group`, rank by rank, on every rank. A rank may have none.

    They travel as flat host tensors (gloo): pickled objects of a large batch would take seconds.
    """
    if dist.get_world_size(group) == 1:
        return list(own)
    shape = torch.tensor([[len(c.token_ids), c.finished] for c in own], dtype=torch.int64).view(-1, 2)
    token_ids = torch.tensor([i for c in own for i in c.token_ids], dtype=torch.int64)
    log_probs = torch.tensor([x for c in own for x in c.log_probs], dtype=torch.float32)

    sizes = _gather(torch.tensor([[len(shape), len(token_ids)]]), [1] * dist.get_world_size(group), group).tolist()
    counts, totals = zip(*sizes, strict=True)
    lengths, finished = _gather(shape, counts, group).T.tolist()
    all_ids = _gather(token_ids, totals, group).split(lengths)
    all_log_probs = _gather(log_probs, totals, group).split(lengths)
    return [
        Completion(tuple(ids.tolist()), tuple(log_probs.tolist()), bool(done))
        for ids, log_probs, done in zip(all_ids, all_log_probs, finished, strict=True)
    ]


def _gather(own: Tensor, sizes: Sequence[int], group: dist.ProcessGroup | None) -> Tensor:
    """Concatenation over ranks along dimension 0, of which rank r has `sizes[r]` rows."""
    padded = own.new_zeros(max(sizes), *own.shape[1:])
    padded[: len(own)] = own
    parts = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(parts, padded, group=group)
    return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])
