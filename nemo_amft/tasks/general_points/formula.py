"""Reads formulas that a policy wrote. Nothing is ever given to the interpreter: own tokens, own grammar, exact fractions.

    formula    = sum ["=" target]
    sum        = product {("+" | "-") product}
    product    = factor {("*" | "/") factor}
    factor     = number | "(" sum ")"
    number     = digits 0-9, no leading zero

There is no sign, no power and no implied multiplication. Length and depth are bounded, and with them time and memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

MAX_LENGTH = 200
"""Characters. Four numbers of two digits, their operations and the target take some 30."""

MAX_DEPTH = 32
"""Parentheses within parentheses."""

DIGITS = frozenset("0123456789")
"""Unicode knows hundreds of other digits, which int() takes."""

OPERATORS = frozenset("+-*/")


class FormulaError(ValueError):
    """The text is no formula; the message says where and why."""


@dataclass(frozen=True)
class Formula:
    value: Fraction | None
    """None: it divides by zero."""
    numbers: tuple[int, ...]
    """Numbers as written, from left to right, without the target after "="."""


def parse(text: str, target: int = 24) -> Formula:
    """Value and numbers of `text`, which may end in "=" and the target. Raises FormulaError."""
    if len(text) > MAX_LENGTH:
        raise FormulaError(f"it has {len(text)} characters, more than {MAX_LENGTH}")
    body, equals, claim = text.partition("=")
    if equals and claim.strip(" ") != str(target):
        raise FormulaError(f"only {target} may follow '='")
    reader = _Reader(_tokens(body))
    value = reader.sum(0)
    if reader.position < len(reader.tokens):
        raise FormulaError(f"{reader.tokens[reader.position]!r} is out of place")
    return Formula(value, tuple(reader.numbers))


def _tokens(text: str) -> list[str]:
    tokens: list[str] = []
    position = 0
    while position < len(text):
        start, character = position, text[position]
        position += 1
        if character in DIGITS:
            while position < len(text) and text[position] in DIGITS:
                position += 1
            tokens.append(text[start:position])
            if character == "0" and position > start + 1:
                raise FormulaError(f"{tokens[-1]!r} has a leading zero")
        elif character in OPERATORS or character in "()":
            tokens.append(character)
        elif character != " ":
            raise FormulaError(f"{character!a} is no digit, operator or parenthesis")
    return tokens


class _Reader:
    """Recursive descent over the tokens. A value of None comes of a division by zero, and spoils what it is part of."""

    def __init__(self, tokens: list[str]) -> None:
        self.tokens, self.position, self.numbers = tokens, 0, []

    def sum(self, depth: int) -> Fraction | None:
        value = self.product(depth)
        while self._next() in ("+", "-"):
            symbol, other = self._take(), self.product(depth)
            if value is not None:
                value = None if other is None else value + other if symbol == "+" else value - other
        return value

    def product(self, depth: int) -> Fraction | None:
        value = self.factor(depth)
        while self._next() in ("*", "/"):
            symbol, other = self._take(), self.factor(depth)
            if value is None or other is None or (symbol == "/" and other == 0):
                value = None
            else:
                value = value * other if symbol == "*" else value / other
        return value

    def factor(self, depth: int) -> Fraction | None:
        token = self._take()
        if token is None:
            raise FormulaError("it ends where a number is expected")
        if token[0] in DIGITS:
            self.numbers.append(int(token))
            return Fraction(self.numbers[-1])
        if token != "(":
            raise FormulaError(f"{token!r} stands where a number is expected")
        if depth == MAX_DEPTH:
            raise FormulaError(f"parentheses are nested more than {MAX_DEPTH} deep")
        value = self.sum(depth + 1)
        if self._take() != ")":
            raise FormulaError("a parenthesis is not closed")
        return value

    def _next(self) -> str | None:
        return self.tokens[self.position] if self.position < len(self.tokens) else None

    def _take(self) -> str | None:
        token = self._next()
        self.position += token is not None
        return token
