"""What the policy reads, and what an expert would write."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence

from nemo_amft.tasks.general_points.answers import MARK
from nemo_amft.tasks.general_points.cards import Card, FaceCards, numbers
from nemo_amft.tasks.general_points.environment import PointsEnvironment, Style, write_answer
from nemo_amft.tasks.general_points.solver import Expression, Rational, combine, number_alone, solve

RULES: dict[FaceCards, str] = {
    "ten": "J, Q and K count 10 each.",
    "ranks": "J counts 11, Q counts 12 and K counts 13.",
}

RULE_MARKS: dict[FaceCards, str] = {"ten": "t", "ranks": "r"}
"""The same in the compact style."""

COUNTS = {2: "two", 3: "three", 4: "four"}


def write_prompt(cards: Sequence[Card], face_cards: FaceCards, target: int, style: Style, as_image: bool, faces: bool) -> str:
    """The first user message. `as_image`: the cards are in a picture beside it. `faces`: there are face cards in the game.

    In the compact style, for example "3 8 J 2t=": the cards, and how the face cards count if the game has any.
    """
    labels = [card.label for card in cards]
    if style == "compact":
        return f"{' '.join(labels)}{RULE_MARKS[face_cards] if faces else ''}="
    count = COUNTS[len(cards)]
    shown = f"The picture shows {count} cards." if as_image else f"These are your {count} cards: {json.dumps(labels)}"
    rule = f" {RULES[face_cards]}" if faces else ""
    return (
        f"Make {target} of the numbers of {count} cards, with +, -, *, / and parentheses. Use every card's number exactly once "
        f"and no other number.\nAn A counts 1, a number card what it says.{rule}\n"
        f'Answer with a JSON object: {{"cards": [the {count} cards], "number": [what they count], "formula": "..."}}.\n{shown}'
    )


def write_response(cards: Sequence[Card], face_cards: FaceCards, expression: Expression, target: int, style: Style) -> str:
    """A response whose formula is `expression`.

    As JSON the formula ends in "=24" where that is so. In the compact style it follows its steps, each with the numbers that
    are then left, "7-4=3 1 6;3-1=2 6;2*6=12#(7-4-1)*6" for 4 A 6 7: each step is worked out from the one before, and no card
    is forgotten or made up.
    """
    hand = numbers([card.rank for card in cards], face_cards)
    if style == "compact":
        return f"{write_steps(hand, expression)}{MARK}{expression.text}"
    return json.dumps(
        {
            "cards": [card.label for card in cards],
            "number": hand,
            "formula": f"{expression.text}={target}" if expression.value == target else expression.text,
        }
    )


def write_steps(hand: Sequence[int], expression: Expression) -> str:
    """The steps of a formula of `hand`'s numbers, each with the numbers left: its result, then the others in their order."""
    left, written = list[Rational](hand), []
    for step in expression.steps:
        left.remove(step.left)
        left.remove(step.right)
        left.insert(0, step.value)
        written.append(f"{step}{''.join(f' {value}' for value in left[1:])}")
    return ";".join(written)


def write_demonstration(
    environment: PointsEnvironment,
    cards: Sequence[Card],
    face_cards: FaceCards,
    turns: int,
    generator: random.Random,
) -> str | tuple[str, ...]:
    """The solver's answer; with `turns` above 1 after turns - 1 attempts that miss the target, and what they were told."""
    hand = numbers([card.rank for card in cards], face_cards)
    target, style, answer = environment.target, environment.style, write_answer(cards, face_cards)
    expression = solve(hand, target)
    assert expression is not None, hand
    right = write_response(cards, face_cards, expression, target, style)
    said: list[str] = []
    for _ in range(turns - 1):
        said.append(write_response(cards, face_cards, draw_wrong(generator, hand, target), target, style))
        verdict = environment(answer, said[::2], True)
        assert verdict.follow_up is not None, (said, verdict)
        said.append(verdict.follow_up)
    return (*said, right) if said else right


def draw_wrong(generator: random.Random, hand: Sequence[int], target: int) -> Expression:
    """A random formula of `hand`'s numbers, each once, that makes a whole number other than the target, on the way as well."""
    while True:
        parts: list[Expression] = [number_alone(value) for value in hand]
        while len(parts) > 1:
            generator.shuffle(parts)
            made = combine(parts[0], generator.choice("+-*/"), parts[1])
            if made is None or made.value.denominator > 1 or made.value < 0:
                break
            parts[:2] = [made]
        else:
            if parts[0].value != target:
                return parts[0]
