"""Which numbers make the target, with a formula: exact, over multisets, each worked out once.

A formula's last operation joins two groups of its numbers. All that a group of up to three can make is tabulated; for four,
one side of the last operation is looked up from the other: some hundred look-ups in place of thousands of results.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple

from nemo_amft.tasks.general_points.cards import FaceCards, numbers

Cost = tuple[int, int, int, int, int]

Rational = int | Fraction
"""A whole number is always an int."""

PRECEDENCE = {"+": 1, "-": 1, "*": 2, "/": 2}
OF_A_NUMBER = 3


class Step(NamedTuple):
    """One operation: left symbol right = value."""

    left: Rational
    symbol: str
    right: Rational
    value: Rational

    def __str__(self) -> str:
        """For example "8*3=24" or "3-(8/3)=1/3"."""
        return f"{_operand(self.left)}{self.symbol}{_operand(self.right)}={self.value}"


@dataclass(frozen=True)
class Expression:
    """A formula with its value, and how it is worked out."""

    value: Rational
    text: str
    """With no parentheses that are not needed."""
    precedence: int
    """Of its last operation; OF_A_NUMBER for a number."""
    steps: tuple[Step, ...]
    """Its operations in the order of working them out."""
    cost: Cost
    """What makes it harder: results that are fractions; that are negative; operations with a result on their right (without
    one, each step goes on from the step before); the sum of the results' sizes; divisions."""

    @property
    def key(self) -> tuple[Cost, str]:
        """Smaller is preferred; no two formulas share one."""
        return self.cost, self.text


def number_alone(value: int) -> Expression:
    """A card's number, as a formula."""
    return Expression(value, str(value), OF_A_NUMBER, (), (0, 0, 0, 0, 0))


def combine(left: Expression, symbol: str, right: Expression) -> Expression | None:
    """`left symbol right`; None where that divides by zero."""
    if symbol == "+":
        value = left.value + right.value
    elif symbol == "-":
        value = left.value - right.value
    elif symbol == "*":
        value = left.value * right.value
    elif right.value == 0:
        return None
    else:
        value = Fraction(left.value, right.value)
    if value.denominator == 1:
        value = int(value)  # many times as fast as a fraction, and equal to it
    precedence = PRECEDENCE[symbol]
    left_text = f"({left.text})" if left.precedence < precedence else left.text
    # a-(b+c) and a/(b*c) need theirs, a+(b-c) and a*(b/c) mean the same without.
    bound = right.precedence < precedence or (right.precedence == precedence and symbol in "-/")
    right_text = f"({right.text})" if bound else right.text
    step = Step(left.value, symbol, right.value, value)
    own = (int(value.denominator > 1), int(value < 0), int(bool(right.steps)), math.ceil(abs(value)), int(symbol == "/"))
    fractions, negative, turns, sizes, divisions = (sum(parts) for parts in zip(left.cost, right.cost, own, strict=True))
    cost = fractions, negative, turns, sizes, divisions
    return Expression(value, left_text + symbol + right_text, precedence, (*left.steps, *right.steps, step), cost)


def _operand(value: Rational) -> str:
    return str(value) if value.denominator == 1 and value >= 0 else f"({value})"


def solve(hand: Sequence[int], target: int = 24) -> Expression | None:
    """The formula of least cost (Expression.key) that makes `target` of `hand`'s numbers, each once; None if there is none.

    It depends on the numbers and not on their order. `hand` holds one to four of them, none negative.
    """
    return _solve(tuple(sorted(hand)), target)


@functools.lru_cache(maxsize=1 << 14)
def _solve(hand: tuple[int, ...], target: int) -> Expression | None:
    assert 1 <= len(hand) <= 4, hand
    if len(hand) < 4:
        return _reachable(hand).get(target)
    found = [
        expression
        for left, right in _splits(hand)
        for given in _reachable(left).values()
        for expression in _joined_to(given, _reachable(right), target)
    ]
    return min(found, key=lambda expression: expression.key, default=None)


@functools.lru_cache(maxsize=1 << 14)
def _reachable(hand: tuple[int, ...]) -> dict[Rational, Expression]:
    """Every value that all of `hand`'s numbers make, with the formula of least cost."""
    if len(hand) == 1:
        alone = number_alone(hand[0])
        return {alone.value: alone}
    best: dict[Rational, Expression] = {}
    for left, right in _splits(hand):
        for one, other in itertools.product(_reachable(left).values(), _reachable(right).values()):
            for expression in _joined(one, other):
                seen = best.get(expression.value)
                if seen is None or expression.key < seen.key:
                    best[expression.value] = expression
    return best


def _splits(hand: tuple[int, ...]) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Every way to part a sorted hand in two groups, the smaller first and each once."""
    seen = set()
    for size in range(1, len(hand) // 2 + 1):
        for chosen in itertools.combinations(range(len(hand)), size):
            parts = tuple(hand[i] for i in chosen), tuple(n for i, n in enumerate(hand) if i not in chosen)
            if parts not in seen:
                seen.update((parts, parts[::-1]))
                yield parts


def _joined(one: Expression, other: Expression) -> Iterator[Expression]:
    """Every operation on the two; for + and * the one of more steps stands first, then the larger."""
    first, second = sorted((one, other), key=lambda expression: (len(expression.steps), expression.value), reverse=True)
    operations = [(first, symbol, second) for symbol in "+*-/"] + [(second, symbol, first) for symbol in "-/"]
    for left, symbol, right in operations:
        expression = combine(left, symbol, right)
        if expression is not None:
            yield expression


def _joined_to(given: Expression, others: dict[Rational, Expression], target: int) -> Iterator[Expression]:
    """Every operation on `given` and one of `others` that makes `target`."""
    a = given.value
    wanted = {target - a, target + a, a - target}
    if a != 0:
        wanted |= {Fraction(target, a), target * a}
    if target != 0:
        wanted.add(Fraction(a, target))
    if a == 0 and target == 0:
        # 0 times or 0 divided by anything: no one value is wanted.
        wanted |= set(others)
    for value in sorted(wanted):
        if value in others:
            yield from (made for made in _joined(given, others[value]) if made.value == target)


@functools.lru_cache(maxsize=64)
def solvable(num_cards: int, max_rank: int, face_cards: FaceCards, target: int) -> frozenset[tuple[int, ...]]:
    """Sorted rank multisets of `num_cards` ranks in 1..max_rank that can make `target`."""
    hands = itertools.combinations_with_replacement(range(1, max_rank + 1), num_cards)
    return frozenset(hand for hand in hands if solve(numbers(hand, face_cards), target) is not None)


def draw_probability(hand: Sequence[int], max_rank: int) -> Fraction:
    """Probability that independent ranks, uniform in 1..max_rank, are the multiset `hand`."""
    return Fraction(count_orders(hand), max_rank ** len(hand))


def count_orders(hand: Sequence[int]) -> int:
    """In how many orders the numbers of `hand` can be laid out."""
    return math.factorial(len(hand)) // math.prod(map(math.factorial, Counter(hand).values()))
