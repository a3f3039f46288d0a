"""From sequences to micro-batches: this rank's share, then padded tensors whose masks come from lengths."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from nemo_amft.types import TokenSequence


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


def balanced_shares(lengths: Sequence[int], shares: int) -> list[list[int]]:
    """Deal sequences to `shares` ranks: equal numbers (to one) and nearly equal tokens. Returns indices a share, ascending.

    Longest first, there and back (0 1 2 2 1 0 ...), so that no rank gets all the long ones.
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    dealt: list[list[int]] = [[] for _ in range(shares)]
    for position, index in enumerate(order):
        lap, seat = divmod(position, shares)
        dealt[seat if lap % 2 == 0 else shares - 1 - seat].append(index)
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

    @property
    def position_ids(self) -> torch.Tensor:
        return torch.arange(self.tokens.shape[1], device=self.tokens.device).expand_as(self.tokens)


def micro_batches(
    batch: Batch, size: int, device: torch.device, *, length_multiple: int = 1, count_multiple: int = 1
) -> list[MicroBatch]:
    """Cut a share into padded micro-batches of up to `size` sequences, similar lengths together.

    At least one micro-batch comes out, and a multiple of `count_multiple` of them (interleaved pipelines want that): fillers
    have no trained token, so they add an exact zero. Sequence lengths are rounded up to `length_multiple` (sequence parallelism
    splits them).
    """
    order = sorted(range(len(batch.sequences)), key=lambda i: (len(batch.sequences[i].tokens), i))
    groups = [order[i : i + size] for i in range(0, len(order), size)]
    groups += [[]] * (-len(groups) % count_multiple or (0 if groups else count_multiple))
    return [_pad(batch, group, device, length_multiple) for group in groups]


def _pad(batch: Batch, indices: list[int], device: torch.device, multiple: int) -> MicroBatch:
    rows = [batch.sequences[i] for i in indices]
    # The last token is predicted but predicts nothing, so positions are one fewer than tokens.
    length = max((len(row.tokens) - 1 for row in rows), default=1)
    length = max(-(-length // multiple) * multiple, multiple)
    count = max(len(rows), 1)
    tokens = torch.zeros(count, length, dtype=torch.int64)
    labels = torch.zeros(count, length, dtype=torch.int64)
    mask = torch.zeros(count, length, dtype=torch.bool)
    extras = {name: torch.zeros(count, length) for name in batch.per_token}
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
    )


def unpad(micro: Sequence[MicroBatch], outputs: Sequence[torch.Tensor], batch: Batch) -> list[torch.Tensor]:
    """Undo `micro_batches`: outputs [B, S] back to one CPU tensor [T] a sequence, aligned with its tokens (0 for token 0)."""
    result: list[torch.Tensor] = [torch.zeros(len(s.tokens)) for s in batch.sequences]
    for part, output in zip(micro, outputs, strict=True):
        for b, index in enumerate(part.indices):
            n = len(batch.sequences[index].tokens) - 1
            result[index][1:] = output[b, :n].detach().float().cpu()
    return result
