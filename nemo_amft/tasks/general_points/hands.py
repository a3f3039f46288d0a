"""Which hands each split holds."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from nemo_amft.tasks.general_points.cards import FaceCards, draw_ranks, numbers
from nemo_amft.tasks.general_points.solver import solvable

Hand = tuple[int, ...]
"""Ranks in the order of the cards."""

SHARES = {"test": 4, "validation": 8}
"""A split may hold one in so many of the solvable multisets of numbers; training has the rest."""


@dataclass(frozen=True)
class Game:
    """What hands are drawn from and which of them can be solved."""

    num_cards: int
    max_rank: int
    face_cards: FaceCards
    target: int

    def key(self, hand: Hand) -> tuple[int, ...]:
        """What decides how a hand is solved: its numbers without their order."""
        return tuple(sorted(numbers(hand, self.face_cards)))

    def solvable(self) -> frozenset[tuple[int, ...]]:
        """Keys of the hands that can be solved."""
        ranks = solvable(self.num_cards, self.max_rank, self.face_cards, self.target)
        return frozenset(self.key(hand) for hand in ranks)

    def solves_a_face(self) -> bool:
        """Whether any hand with a face card can be solved."""
        return any(max(hand) > 10 for hand in solvable(self.num_cards, self.max_rank, self.face_cards, self.target))

    def draw(self, generator: random.Random, fits: Callable[[tuple[int, ...]], bool], face_forced: bool = False) -> Hand:
        """A hand, redrawn until its key `fits`."""
        while True:
            hand = draw_ranks(generator, self.num_cards, self.max_rank, face_forced)
            if fits(self.key(hand)):
                return hand


def draw_splits(
    game: Game, sizes: dict[Literal["test", "validation", "train"], int], seeds: dict[str, object]
) -> dict[str, list[Hand]]:
    """Hands of each split; no multiset of numbers is in two of them.

    A split's hands come at random among all solvable ones until it holds its share of their multisets, and from then on among
    those it holds: its hands are as likely as in the game, and what is left to train on does not shrink with its size. Within a
    split hands may repeat. `game` has at least max(SHARES) solvable multisets.
    """
    every = game.solvable()
    taken: set[tuple[int, ...]] = set()
    splits: dict[str, list[Hand]] = {}
    for split in ("test", "validation"):
        own, limit = set[tuple[int, ...]](), len(every) // SHARES[split]
        generator, hands = random.Random(f"general_points/{split}/{seeds[split]}"), []
        for _ in range(sizes[split]):
            open_ones = own if len(own) >= limit else every - taken
            hands.append(game.draw(generator, open_ones.__contains__))
            own.add(game.key(hands[-1]))
        taken |= own
        splits[split] = hands
    generator, rest = random.Random(f"general_points/train/{seeds['train']}"), every - taken
    splits["train"] = [game.draw(generator, rest.__contains__) for _ in range(sizes["train"])]
    return splits


def draw_with_a_face(game: Game, size: int, seed: object) -> list[Hand]:
    """Solvable hands of which one card, anywhere, is forced to be a J, Q or K (the rule's out-of-distribution set)."""
    generator, every = random.Random(f"general_points/face/{seed}"), game.solvable()
    return [game.draw(generator, every.__contains__, face_forced=True) for _ in range(size)]
