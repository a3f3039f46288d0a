"""Judges attempts at a hand; runs in child processes, so it imports nothing heavy.

Rewards of an attempt, as in the original code of SFTvsRL (arXiv 2501.17161): right 5, legal but wrong -1, cards misread -1.5
(images only; nothing else is then looked at), wrong numbers -2, illegal -3; an episode of several attempts that ends without a
right one costs another -1 (its step limit). That code adds up the faults of one formula; here the first found counts.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from nemo_amft.tasks.general_points.answers import AnswerError, read_compact, read_json
from nemo_amft.tasks.general_points.cards import Card, FaceCards, numbers
from nemo_amft.tasks.general_points.formula import FormulaError, parse
from nemo_amft.types import Verdict

Outcome = Literal["right", "wrong", "misread", "numbers", "illegal"]
Reward = Literal["original", "binary"]
Style = Literal["json", "compact"]

ORIGINAL: dict[Outcome, float] = {"right": 5.0, "wrong": -1.0, "misread": -1.5, "numbers": -2.0, "illegal": -3.0}

STEP_LIMIT = -1.0


def write_answer(cards: Sequence[Card], face_cards: FaceCards) -> str:
    """What the environment has to know of a hand: an Example's `answer`."""
    counts = numbers([card.rank for card in cards], face_cards)
    return json.dumps({"cards": [card.label for card in cards], "number": counts}, separators=(",", ":"))


@dataclass(frozen=True)
class Attempt:
    outcome: Outcome
    detail: str
    """Why it failed; empty if it did not."""
    short: str = ""
    """The same in the few characters of the compact style."""


@dataclass(frozen=True)
class PointsEnvironment:
    """Up to `max_turns` attempts, each followed by a message that says what was wrong with it; see base.Environment.

    The reward is the episode's return, the sum of its attempts' rewards, where `reward` is "original", so that an early
    success is worth more than a late one. "binary": 1 for a right formula within the attempts, else 0.
    """

    target: int = 24
    style: Style = "json"
    cards_are_read: bool = False
    """The cards come as an image, so the answer has to name them."""
    reward: Reward = "original"
    max_turns: int = 1

    def __call__(self, answer: str, responses: Sequence[str], finished: bool) -> Verdict:
        """Judge all attempts so far. A response that the length limit cut is illegal and ends the episode."""
        hand = json.loads(answer)
        earned = 0.0
        assert responses, "there is no response to judge"
        for turn, response in enumerate(responses[: self.max_turns], 1):
            cut = turn == len(responses) and not finished
            attempt = Attempt("illegal", "cut by the length limit") if cut else self.attempt(hand, response)
            earned += ORIGINAL[attempt.outcome]
            if attempt.outcome == "right":
                return Verdict(earned if self.reward == "original" else 1.0, True)
        ended = cut or turn == self.max_turns
        if ended and self.max_turns > 1:
            earned += STEP_LIMIT
        return Verdict(
            earned if self.reward == "original" else 0.0,
            False,
            detail=attempt.detail,
            follow_up=None if ended else self.follow_up(attempt),
        )

    def attempt(self, hand: dict[str, list], response: str) -> Attempt:
        """What one response that ended by itself is worth; `hand` is `write_answer`'s."""
        try:
            answer = read_json(response) if self.style == "json" else read_compact(response)
        except AnswerError as error:
            return Attempt("illegal", str(error), "form")
        if self.cards_are_read and (answer.cards is None or Counter(answer.cards) != Counter(hand["cards"])):
            return Attempt("misread", "the cards are not those of the image", "cards")
        try:
            formula = parse(answer.formula, self.target)
        except FormulaError as error:
            return Attempt("illegal", f"the formula is illegal: {error}", "form")
        if Counter(formula.numbers) != Counter(hand["number"]):
            used = " ".join(map(str, formula.numbers))
            return Attempt("numbers", f"the formula uses {used}, not each card's number once", "numbers")
        if formula.value is None:
            return Attempt("wrong", "the formula divides by zero", "/0")
        if formula.value != self.target:
            return Attempt("wrong", f"the formula equals {formula.value}, not {self.target}", str(formula.value))
        return Attempt("right", "")

    def follow_up(self, attempt: Attempt) -> str:
        """The user's next message after a failed attempt."""
        if self.style == "compact":
            return f"no:{attempt.short}="
        return f"That fails: {attempt.detail}. Try again, in the same form."


@dataclass(frozen=True)
class OneAttempt:
    """A PointsEnvironment as the Verifier of a task with one turn."""

    environment: PointsEnvironment

    def __call__(self, answer: str, response: str, finished: bool) -> Verdict:
        """See base.Verifier."""
        return self.environment(answer, (response,), finished)
