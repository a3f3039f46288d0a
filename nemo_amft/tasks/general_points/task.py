"""The General Points task: make 24 of four cards (SFTvsRL, arXiv 2501.17161). Hands are drawn, so a run needs no files."""

from __future__ import annotations

import functools
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Literal

from nemo_amft.config.schema import DataConfig
from nemo_amft.tasks.base import Split
from nemo_amft.tasks.general_points.cards import (
    LABELS,
    OTHER_COLOUR,
    OTHER_RULE,
    Card,
    Colour,
    FaceCards,
    deal,
)
from nemo_amft.tasks.general_points.environment import OneAttempt, PointsEnvironment, Reward, Style, write_answer
from nemo_amft.tasks.general_points.hands import SHARES, Game, Hand, HeldOut, draw_splits, draw_with_a_face
from nemo_amft.tasks.general_points.prompts import write_demonstration, write_prompt
from nemo_amft.types import Example, UserError

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class GeneralPointsConfig:
    num_train: int = 4096
    """Training hands. They are drawn, so a hand may come twice."""
    num_validation: int = 256
    """Hands of D_val, apart from the others by held_out."""
    num_test: int = 234
    """Hands of the final evaluation and of each of the other evaluation sets (SFTvsRL: 234)."""
    evaluation_seed: int = 42
    """Draws the test hands and the other evaluation sets, whatever trainer.seed is (SFTvsRL: 42)."""
    held_out: HeldOut = "numbers"
    """What validation and test hands do not share with training ones: numbers (their multiset), or only the order of it. With
    order the set numbers_ood has unseen multisets: a small model has learnt known hands in any order long before it solves
    others."""
    face_cards: FaceCards = "ten"
    """What J, Q and K count: ten (each 10) or ranks (11, 12, 13). The prompt says which; the set rule_ood has the other."""
    suits: Colour = "black"
    """Colour of the cards: black or red. To be seen in images only, where the set visual_ood has the other."""
    form: Literal["text", "image"] = "text"
    """text: the prompt lists the cards. image: the task's `images` shows them, and a response has to name them."""
    style: Style = "json"
    """json: instructions, and a JSON object as answer. compact: "3 8 J 2t=" and steps with a formula, for small models."""
    reward: Reward = "original"
    """original: SFTvsRL's 5, -1, -1.5, -2, -3, added up over the attempts. binary: 1 for success, else 0 (AMFT, Eq. 1)."""
    max_turns: int = 1
    """Most scored attempts at a hand, 1 to 5 (SFTvsRL: 5)."""
    demonstration_turns: int = 1
    """Most turns of a demonstration, at most max_turns; each length is equally likely. Above 1 the earlier turns are wrong
    attempts, and imitation trains on these too."""
    num_cards: int = 4
    """Cards of a hand, 2 to 4. Fewer make an easier game."""
    max_rank: int = 13
    """Highest rank, 1 to 13; below 11 there are no face cards and no set rule_ood."""
    target: int = 24
    """What the formula has to make. A smaller one has more solutions and smaller numbers on the way."""

    def __post_init__(self) -> None:
        checks = (
            (self.num_train >= 1, "num_train", self.num_train, "at least 1"),
            (self.num_validation >= 0, "num_validation", self.num_validation, "at least 0"),
            (self.num_test >= 0, "num_test", self.num_test, "at least 0"),
            (1 <= self.max_turns <= 5, "max_turns", self.max_turns, "1 to 5"),
            (
                1 <= self.demonstration_turns <= self.max_turns,
                "demonstration_turns",
                self.demonstration_turns,
                f"1 to task.max_turns, {self.max_turns}",
            ),
            (2 <= self.num_cards <= 4, "num_cards", self.num_cards, "2 to 4"),
            (1 <= self.max_rank <= 13, "max_rank", self.max_rank, "1 to 13"),
            (self.target >= 0, "target", self.target, "at least 0"),
            (self.form == "text" or self.style == "json", "style", self.style, "json, as task.form is image"),
        )
        for holds, key, found, expected in checks:
            if not holds:
                raise UserError(f"task.{key}: found {found!r}, expected {expected}")


class GeneralPointsTask:
    """Four cards, say 3 8 J 2, of which a formula has to make 24, say 8+3*2+10; judged exactly.

    All splits hold solvable hands only, drawn as SFTvsRL does: ranks independent and uniform, redrawn until solvable.
    """

    Config: ClassVar[type[GeneralPointsConfig]] = GeneralPointsConfig
    generated = True

    def __init__(self, config: GeneralPointsConfig, data: DataConfig, seed: int) -> None:
        """Raises UserError if data names files, which this task would silently ignore."""
        for key in ("train", "validation", "test"):
            found = getattr(data, key)
            if found is not None:
                raise UserError(f"data.{key}: found {found!r}, expected null, as the task deals its own hands")
        self.config = config
        self.seed = seed
        self.max_turns = config.max_turns

    def examples(self, split: Split) -> list[Example]:
        """The hands of `split`. No two splits share a multiset of numbers, so no solution of one is one of another's; where
        task.held_out is order they share none in the same order.

        Raises UserError where too few hands can be solved to be shared out.
        """
        return self._examples(split, self._splits[split], self.config)

    def evaluation_sets(self) -> dict[str, list[Example]]:
        """Sets beside examples("test"), out of the training distribution, of task.num_test hands each:

        "rule_ood": face cards count by the other rule, and each hand has one at least (left out where none such is solvable).
        "numbers_ood": multisets of numbers that are never trained on (held_out: order only; otherwise the test hands are such).
        "visual_ood": the test hands in cards of the other colour (images only).
        """
        sets: dict[str, list[Example]] = {}
        other = replace(self.config, face_cards=OTHER_RULE[self.config.face_cards])
        if _game(other).solves_a_face():
            hands = draw_with_a_face(_game(other), other.num_test, other.evaluation_seed)
            sets["rule_ood"] = self._examples("rule_ood", hands, other)
        if "numbers_ood" in self._splits:
            sets["numbers_ood"] = self._examples("numbers_ood", self._splits["numbers_ood"], self.config)
        if self.config.form == "image":
            other = replace(self.config, suits=OTHER_COLOUR[self.config.suits])
            sets["visual_ood"] = self._examples("visual_ood", self._splits["test"], other)
        return sets

    def environment(self) -> PointsEnvironment:
        """Judges up to max_turns attempts; without follow-up where that is 1."""
        c = self.config
        return PointsEnvironment(c.target, c.style, c.form == "image", c.reward, c.max_turns)

    def verifier(self) -> OneAttempt:
        """The same for one attempt. Raises UserError where there may be several."""
        if self.max_turns > 1:
            raise UserError(f"task.max_turns: found {self.max_turns}, expected 1 where a response is judged by itself")
        return OneAttempt(self.environment())

    def images(self, example: Example) -> list[Image]:
        """What goes with the prompt: one picture of the hand, 1200 x 1200, or nothing where the cards are listed."""
        if self.config.form == "text":
            return []
        from nemo_amft.tasks.general_points.image import draw_hand  # here, as text needs no Pillow

        return [draw_hand([Card(LABELS.index(label) + 1, suit) for label, suit in example.metadata["cards"]])]

    @property
    def _faces(self) -> bool:
        return self.config.max_rank > 10

    @functools.cached_property
    def _splits(self) -> dict[str, list[Hand]]:
        c, game = self.config, _game(self.config)
        found, needed = len(game.solvable()), max(SHARES.values())
        if found < needed:
            raise UserError(
                f"task.num_cards, max_rank, target: found {found} solvable hands with {c.num_cards}, {c.max_rank}, {c.target}, "
                f"expected at least {needed} to share out"
            )
        sizes = {"test": c.num_test, "validation": c.num_validation, "train": c.num_train}
        seeds = {"test": c.evaluation_seed, "validation": self.seed, "train": self.seed}
        return draw_splits(game, sizes, seeds, c.held_out)

    def _examples(self, name: str, hands: Sequence[Hand], config: GeneralPointsConfig) -> list[Example]:
        seed = self.seed if name in ("train", "validation") else config.evaluation_seed
        return [
            self._example(
                f"general_points/{name}/{index}", hand, config, random.Random(f"general_points/{name}/{seed}/{index}")
            )
            for index, hand in enumerate(hands)
        ]

    def _example(self, id: str, hand: Hand, config: GeneralPointsConfig, generator: random.Random) -> Example:
        cards = deal(generator, hand, config.suits)
        prompt = write_prompt(cards, config.face_cards, config.target, config.style, config.form == "image", self._faces)
        turns = generator.randint(1, config.demonstration_turns)
        return Example(
            id,
            ({"role": "user", "content": prompt},),
            write_answer(cards, config.face_cards),
            write_demonstration(self.environment(), cards, config.face_cards, turns, generator),
            "general_points",
            metadata={"cards": [[card.label, card.suit] for card in cards], "face_cards": config.face_cards},
        )


def _game(config: GeneralPointsConfig) -> Game:
    return Game(config.num_cards, config.max_rank, config.face_cards, config.target)
