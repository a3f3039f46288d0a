"""From sequences to micro-batches: this rank's share, then padded tensors whose masks come from lengths."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from nemo_amft.data.packing import Packing, pack, padded_lengths
from nemo_amft.types import TokenSequence

if TYPE_CHECKING:
    from nemo_amft.parallel.groups import Place


@dataclass
class Batch:
    """Sequences with the numbers that belong to their tokens, and the counts of the GLOBAL batch they are a part of.

    `per_token[name][b]` is a float32 tensor [T_b] aligned with `sequences[b].tokens`; `per_sequence[name][b]` is one number.
    """

    sequences: list[TokenSequence]
    total_tokens: int
    """Trained tokens of the global batch: the denominator of a token mean."""
    total_sequences: int
    """Sequences of the global batch that have a trained token."""
    per_token: dict[str, list[torch.Tensor]] = field(default_factory=dict)
    per_sequence: dict[str, list[float]] = field(default_factory=dict)

    @classmethod
    def whole(cls, sequences: Sequence[TokenSequence], **per_sequence: Sequence[float]) -> Batch:
        """A global batch, counts taken from its own sequences."""
        return cls(
            list(sequences),
            total_tokens=sum(s.num_trained for s in sequences),
            total_sequences=sum(s.num_trained > 0 for s in sequences),
            per_sequence={name: list(values) for name, values in per_sequence.items()},
        )

    def select(self, indices: Sequence[int]) -> Batch:
        """The same global batch with only these sequences: a rank's share, or a mini-batch's."""
        return Batch(
            [self.sequences[i] for i in indices],
            self.total_tokens,
            self.total_sequences,
            {name: [values[i] for i in indices] for name, values in self.per_token.items()},
            {name: [values[i] for i in indices] for name, values in self.per_sequence.items()},
        )

    def share(self, place: Place) -> Batch:
        """What this data-parallel rank computes of it: nearly equal tokens for each."""
        return self.select(balanced_shares([len(s.tokens) for s in self.sequences], place.data_size)[place.data_rank])


def balanced_shares(lengths: Sequence[int], shares: int) -> list[list[int]]:
    """Deal sequences to `shares` ranks with nearly equal tokens. Returns indices a share, ascending.

    Longest first, each to the share that has the fewest tokens so far (of equal ones, the fewest sequences): no share has more
    than the mean and one sequence.
    """
    dealt: list[list[int]] = [[] for _ in range(shares)]
    heap = [(0, 0, share) for share in range(shares)]
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        tokens, count, share = heapq.heappop(heap)
        dealt[share].append(index)
        heapq.heappush(heap, (tokens + lengths[index], count + 1, share))
    return [sorted(share) for share in dealt]


@dataclass
class MicroBatch:
    """Padded tensors of B sequences, S positions. Position i holds what is predicted AFTER tokens[:, :i + 1].

    `extras` holds the batch's per-token numbers, moved to the position that predicts their token, and its per-sequence
    numbers as [B, 1].
    """

    tokens: torch.Tensor
    """int64 [B, S], right padded."""
    labels: torch.Tensor
    """int64 [B, S], the next token."""
    mask: torch.Tensor
    """bool [B, S], whether the next token is trained on."""
    extras: dict[str, torch.Tensor]
    indices: list[int]
    """Which of the share's sequences these are; empty for a filler that keeps pipelines in step."""
    num_real: int = 0
    """Positions that hold a token of the batch."""
    packing: Packing | None = None
    """How the model sees the sequences laid end to end; None: padded. Losses always see [B, S]."""

    @property
    def position_ids(self) -> torch.Tensor:
        return torch.arange(self.tokens.shape[1], device=self.tokens.device).expand_as(self.tokens)

    @property
    def num_positions(self) -> int:
        """Positions that the model computes, padding included, on all context-parallel ranks together."""
        return self.tokens.numel() if self.packing is None else self.packing.all_slots.numel()

    @property
    def padding(self) -> tuple[torch.Tensor, torch.Tensor]:
        """(positions that hold no token of the batch, all positions) as a metric."""
        numbers = torch.tensor([self.num_positions - self.num_real, self.num_positions], device=self.mask.device)
        return numbers[0], numbers[1]


@dataclass(frozen=True)
class Cut:
    """How a share is cut into micro-batches.

    A filler sequence (no trained token, so it adds an exact zero) makes up the numbers where there are too few.
    """

    size: int = 8
    """Sequences of a micro-batch, where `tokens` is None."""
    tokens: int | None = None
    """Positions of a micro-batch, padding included: it takes as many sequences as fit, a longer one alone."""
    packed: bool = False
    """Lay sequences end to end instead of padding them to the longest."""
    length_multiple: int = 1
    """Positions are rounded up to it (sequence parallelism splits them)."""
    count_multiple: int = 1
    """Micro-batches come in multiples of it (interleaved pipelines want that)."""
    context_rank: int = 0
    context_size: int = 1
    """Ranks that share each sequence; more than one needs `packed`."""


def micro_batches(batch: Batch, cut: Cut, device: torch.device) -> list[MicroBatch]:
    """Cut a share into micro-batches, similar lengths together. At least one comes out."""
    groups = _groups([max(len(s.tokens) - 1, 1) for s in batch.sequences], cut)
    groups += [[]] * (-len(groups) % cut.count_multiple or (0 if groups else cut.count_multiple))
    return [_micro_batch(batch, group, cut, device) for group in groups]


def _groups(lengths: Sequence[int], cut: Cut) -> list[list[int]]:
    """Indices of the sequences of each micro-batch, by ascending length."""
    order = sorted(range(len(lengths)), key=lambda i: (lengths[i], i))
    if cut.tokens is None:
        return [order[i : i + cut.size] for i in range(0, len(order), cut.size)]
    groups: list[list[int]] = []
    total = 0
    for i in order:
        # Ascending, so the newcomer is the longest and sets the width of a padded micro-batch.
        after = total + lengths[i] if cut.packed else (len(groups[-1]) + 1 if groups else 1) * lengths[i]
        if not groups or after > cut.tokens:
            groups.append([])
            after = lengths[i]
        groups[-1].append(i)
        total = after
    return groups


def _micro_batch(batch: Batch, indices: list[int], cut: Cut, device: torch.device) -> MicroBatch:
    rows = [batch.sequences[i] for i in indices]
    # The last token is predicted but predicts nothing, so positions are one fewer than tokens.
    lengths = [max(len(row.tokens) - 1, 1) for row in rows] or [1]
    if cut.packed:
        lengths = padded_lengths(lengths, cut.context_size, cut.length_multiple)
        count, width = len(lengths), max(lengths)
    else:
        count, width = len(lengths), -(-max(lengths) // cut.length_multiple) * cut.length_multiple
    tokens = torch.zeros(count, width, dtype=torch.int64)
    labels = torch.zeros(count, width, dtype=torch.int64)
    mask = torch.zeros(count, width, dtype=torch.bool)
    extras = {name: torch.zeros(count, width) for name in batch.per_token}
    for b, (index, row) in enumerate(zip(indices, rows, strict=True)):
        ids, n = torch.tensor(row.tokens), len(row.tokens) - 1
        tokens[b, :n], labels[b, :n], mask[b, :n] = ids[:-1], ids[1:], torch.tensor(row.trained[1:])
        for name, values in batch.per_token.items():
            extras[name][b, :n] = values[index][1:]
    for name, numbers in batch.per_sequence.items():
        extras[name] = torch.tensor([[numbers[i]] for i in indices] or [[0.0]], dtype=torch.float32)
    return MicroBatch(
        tokens.to(device),
        labels.to(device),
        mask.to(device),
        {name: values.to(device) for name, values in extras.items()},
        indices,
        sum(len(row.tokens) - 1 for row in rows),
        pack(lengths, cut.context_rank, cut.context_size, device) if cut.packed else None,
    )


def unpad(micro: Sequence[MicroBatch], outputs: Sequence[torch.Tensor], batch: Batch) -> list[torch.Tensor]:
    """Undo `micro_batches`: outputs [B, S] back to one CPU tensor [T] a sequence, aligned with its tokens (0 for token 0)."""
    result: list[torch.Tensor] = [torch.zeros(len(s.tokens)) for s in batch.sequences]
    for part, output in zip(micro, outputs, strict=True):
        for b, index in enumerate(part.indices):
            n = len(batch.sequences[index].tokens) - 1
            result[index][1:] = output[b, :n].detach().float().cpu()
    return result
