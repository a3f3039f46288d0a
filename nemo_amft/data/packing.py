"""Sequences laid end to end: which position of a padded batch each packed position is, on each context-parallel rank."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

SPREAD, SHORT = 1.25, 64
"""Lengths that one bundle may hold: up to so many times its shortest, and all below so many positions."""


@dataclass(frozen=True)
class Bundle:
    """Neighbouring sequences of a packing of similar length, padded together for an attention that knows no packing.

    One call for all lengths would attend to padding for the square of it, a call a sequence costs more than short ones save.
    """

    positions: int
    """What its sequences take of the packing."""
    shape: tuple[int, int]
    """(sequences, the longest)"""
    slots: Tensor | None
    """int64 [positions], where each lies in `shape`, flattened; None where all lengths are equal, so that it is a view."""


@dataclass(frozen=True)
class Packing:
    """B sequences of S positions at most, packed: P positions in all, of which this context-parallel rank computes P / C.

    A slot is an index b * S + s into the padded batch (B, S). A sequence may be followed by fillers, which have slots too: as
    nothing looks ahead, they are hidden from real tokens without a mask.
    """

    shape: tuple[int, int]
    """(B, S)"""
    slots: Tensor
    """int64 [P / C], this rank's."""
    all_slots: Tensor
    """int64 [P], those of all context-parallel ranks, rank after rank."""
    boundaries: Tensor
    """int32 [B + 1], where each sequence starts among the P positions; P at the end."""
    bundles: tuple[Bundle, ...]
    """All sequences in order, where no context-parallel ranks share them."""

    @property
    def position_ids(self) -> Tensor:
        """int64 [1, P / C], the position of each within its own sequence."""
        return (self.slots % self.shape[1])[None]

    def take(self, values_BS: Tensor) -> Tensor:
        """Pick [1, P / C] from a padded [B, S]."""
        return values_BS.reshape(-1)[self.slots][None]


def padded_lengths(lengths: Sequence[int], context_size: int, multiple: int) -> list[int]:
    """Lengths with fillers: each a multiple of 2 C if C context-parallel ranks share it, and their sum such that a rank's part
    is a multiple of `multiple`. The last sequence takes what the sum lacks.

    2 C: a rank has two pieces of each sequence, so that early positions, which attend to little, and late ones are dealt
    evenly.
    """
    unit = 2 * context_size if context_size > 1 else 1
    padded = [-(-max(n, 1) // unit) * unit for n in lengths]
    while sum(padded) % (context_size * multiple):
        padded[-1] += unit
    return padded


def pack(padded: Sequence[int], context_rank: int, context_size: int, device: torch.device) -> Packing:
    """Lay sequences of `padded_lengths` end to end."""
    width = max(padded)
    ranks = [_slots(padded, width, rank, context_size) for rank in range(context_size)]
    boundaries = torch.tensor([0, *padded], dtype=torch.int32).cumsum(0, dtype=torch.int32)
    bundles = tuple(_bundle(lengths, device) for lengths in bundled(padded)) if context_size == 1 else ()
    return Packing(
        (len(padded), width), ranks[context_rank].to(device), torch.cat(ranks).to(device), boundaries.to(device), bundles
    )


def bundled(lengths: Sequence[int]) -> list[list[int]]:
    """Neighbours of similar length, in order. A packing's sequences come by length, so that there are few bundles."""
    found: list[list[int]] = []
    for length in lengths:
        both = [*found[-1], length] if found else [length]
        if found and (max(both) <= SHORT or max(both) <= SPREAD * min(both)):
            found[-1] = both
        else:
            found.append([length])
    return found


def _bundle(lengths: Sequence[int], device: torch.device) -> Bundle:
    width = max(lengths)
    slots = None if min(lengths) == width else _slots(lengths, width, 0, 1).to(device)
    return Bundle(sum(lengths), (len(lengths), width), slots)


def _slots(padded: Sequence[int], width: int, rank: int, size: int) -> Tensor:
    """Slots of one rank: of each sequence's 2 C pieces the one at its rank from the front and that from the back, as
    Transformer Engine's context parallelism deals them."""
    parts = []
    for b, length in enumerate(padded):
        if size == 1:
            parts.append(torch.arange(length) + b * width)
            continue
        piece = length // (2 * size)
        for start in (rank * piece, (2 * size - 1 - rank) * piece):
            parts.append(torch.arange(start, start + piece) + b * width)
    return torch.cat(parts)
