"""Playing cards: ranks, suits, and the two rules of what a face card counts."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

FaceCards = Literal["ten", "ranks"]
"""What J, Q and K count: 10 each, or 11, 12 and 13."""

Colour = Literal["black", "red"]

LABELS = ("A", "2", "3", "4", "5", "6", "7", "8", "9", "10", "J", "Q", "K")
"""How ranks 1 to 13 are written."""

FACE_RANKS = (11, 12, 13)

SUITS: dict[Colour, tuple[str, str]] = {"black": ("spades", "clubs"), "red": ("hearts", "diamonds")}

OTHER_RULE: dict[FaceCards, FaceCards] = {"ten": "ranks", "ranks": "ten"}
OTHER_COLOUR: dict[Colour, Colour] = {"black": "red", "red": "black"}


@dataclass(frozen=True)
class Card:
    rank: int
    """1 (ace) to 13 (king)."""
    suit: str
    """One of SUITS' names."""

    @property
    def label(self) -> str:
        """A, 2 to 10, J, Q or K."""
        return LABELS[self.rank - 1]


def number(rank: int, face_cards: FaceCards) -> int:
    """What a card of `rank` (1 to 13) counts; an ace counts 1 under both rules."""
    return min(rank, 10) if face_cards == "ten" else rank


def numbers(ranks: Sequence[int], face_cards: FaceCards) -> tuple[int, ...]:
    """What the cards count, in their order."""
    return tuple(number(rank, face_cards) for rank in ranks)


def draw_ranks(generator: random.Random, num_cards: int, max_rank: int, face_forced: bool = False) -> tuple[int, ...]:
    """Ranks, independent and uniform in 1..max_rank.

    `face_forced` makes one of them, anywhere, a J, Q or K no higher than max_rank, which is then 11 at least. Nothing
    is drawn from a deck: a hand may hold any rank several times.
    """
    ranks = [generator.randint(1, max_rank) for _ in range(num_cards)]
    if face_forced:
        ranks[generator.randrange(num_cards)] = generator.choice([rank for rank in FACE_RANKS if rank <= max_rank])
    return tuple(ranks)


def deal(generator: random.Random, ranks: Sequence[int], colour: Colour) -> tuple[Card, ...]:
    """Cards of those ranks, each in either suit of `colour`."""
    return tuple(Card(rank, generator.choice(SUITS[colour])) for rank in ranks)
