"""Which hands each split holds."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Literal

from nemo_amft.tasks.general_points.cards import FaceCards, draw_ranks, numbers
from nemo_amft.tasks.general_points.solver import count_orders, solvable
from nemo_amft.types import UserError

Hand = tuple[int, ...]
"""Ranks in the order of the cards."""

Key = tuple[int, ...]
"""Numbers of a hand, sorted: what decides how it is solved."""

HeldOut = Literal["numbers", "order"]
"""What held-out hands have not in common with those to train on: their multiset of numbers, or only its order."""

SHARES = {"test": 4, "validation": 8}
"""A split may hold one in so many of the solvable multisets of numbers; training has the rest."""


@dataclass(frozen=True)
class Game:
    """What hands are drawn from and which of them can be solved."""

    num_cards: int
    max_rank: int
    face_cards: FaceCards
    target: int

    def key(self, hand: Hand) -> Key:
        """The hand's numbers without their order."""
        return tuple(sorted(numbers(hand, self.face_cards)))

    def solvable(self) -> frozenset[Key]:
        """Keys of the hands that can be solved."""
        ranks = solvable(self.num_cards, self.max_rank, self.face_cards, self.target)
        return frozenset(self.key(hand) for hand in ranks)

    def solves_a_face(self) -> bool:
        """Whether any hand with a face card can be solved."""
        return any(max(hand) > 10 for hand in solvable(self.num_cards, self.max_rank, self.face_cards, self.target))

    def draw(self, generator: random.Random, fits: Callable[[Hand], bool], face_forced: bool = False) -> Hand:
        """A hand, redrawn until it `fits`."""
        while True:
            hand = draw_ranks(generator, self.num_cards, self.max_rank, face_forced)
            if fits(hand):
                return hand


def draw_splits(game: Game, sizes: Mapping[str, int], seeds: Mapping[str, object], held_out: HeldOut) -> dict[str, list[Hand]]:
    """Hands of train, validation and test, and under held_out "order" of "numbers_ood", which is as large as test.

    The hands of a held-out split come at random among all solvable ones until it holds its share of their multisets of numbers,
    and from then on among those it holds: its hands are as likely as in the game, and what is left to train on does not shrink
    with its size. Within a split hands may repeat. `game` has at least max(SHARES) solvable multisets. Raises UserError where
    too few orders are there to be kept apart.
    """
    every = game.solvable()
    if held_out == "numbers":
        test = _draw(game, sizes["test"], f"test/{seeds['test']}", every, SHARES["test"])
        rest = every - _keys(game, test)
        validation = _draw(game, sizes["validation"], f"validation/{seeds['validation']}", rest, SHARES["validation"])
        train = _draw(game, sizes["train"], f"train/{seeds['train']}", rest - _keys(game, validation))
        return {"train": train, "validation": validation, "test": test}
    # The same hands as are the test there; then those in the same order of numbers are kept apart among the rest.
    unseen = _draw(game, sizes["test"], f"test/{seeds['test']}", every, SHARES["test"])
    rest = every - _keys(game, unseen)
    orders, wanted = sum(count_orders(key) for key in rest), sizes["test"] + sizes["validation"]
    if wanted > orders // 2:
        raise UserError(
            f"task.num_validation + num_test: found {wanted}, expected at most {orders // 2}, half of the {orders} hands "
            "(by order) that task.held_out=order can keep apart"
        )
    test = _draw(game, sizes["test"], f"order/{seeds['test']}", rest)
    validation = _draw(game, sizes["validation"], f"validation/{seeds['validation']}", rest, avoid=test)
    train = _draw(game, sizes["train"], f"train/{seeds['train']}", rest, avoid=[*test, *validation])
    return {"train": train, "validation": validation, "test": test, "numbers_ood": unseen}


def _draw(game: Game, size: int, seed: str, keys: Set[Key], share: int | None = None, avoid: Sequence[Hand] = ()) -> list[Hand]:
    """Hands with a key in `keys`, of one in `share` of the solvable ones at most, in no order of numbers that `avoid` has."""
    generator, hands = random.Random(f"general_points/{seed}"), list[Hand]()
    own, limit = set[Key](), len(game.solvable()) // share if share else None
    orders = {numbers(hand, game.face_cards) for hand in avoid}

    def fits(allowed: Set[Key], hand: Hand) -> bool:
        return game.key(hand) in allowed and numbers(hand, game.face_cards) not in orders

    for _ in range(size):
        hands.append(game.draw(generator, functools.partial(fits, own if len(own) == limit else keys)))
        own.add(game.key(hands[-1]))
    return hands


def _keys(game: Game, hands: Sequence[Hand]) -> set[Key]:
    return {game.key(hand) for hand in hands}


def draw_with_a_face(game: Game, size: int, seed: object) -> list[Hand]:
    """Solvable hands of which one card, anywhere, is forced to be a J, Q or K (the rule's out-of-distribution set)."""
    generator, every = random.Random(f"general_points/face/{seed}"), game.solvable()
    return [game.draw(generator, lambda hand: game.key(hand) in every, face_forced=True) for _ in range(size)]
