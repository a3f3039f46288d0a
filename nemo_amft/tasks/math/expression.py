"""Short answers read as numbers or formulas of at most two letters, and compared by value.

The text comes from a policy, so it is parsed here, symbol by symbol, into sympy objects: sympy's own text parser hands what it
is given to the interpreter. Whatever this grammar lacks is refused, and so is what would take long: powers of powers, large
exponents, deep nesting, factorials.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

MAX_CHARACTERS = 256
MAX_DEPTH = 20
MAX_LETTERS = 2
MAX_BITS = 4096
"""Size of a power of two numbers."""
DIGITS = 50
TOLERANCE, ZERO = 1e-30, 1e-90
"""Relative difference, and what is left of an exact 0, in computing with that many digits: sympy adds digits until so many are
certain, or it has 100."""

_TOKEN = re.compile(r"\s*(\d+(?:\.\d+)?|\.\d+|\\[a-zA-Z]+|[a-zA-Z]|[-+*/^_(){}\[\]])")
_FUNCTIONS = ("sin", "cos", "tan", "cot", "sec", "csc", "arcsin", "arccos", "arctan", "ln", "log", "exp")
_CLOSES = {"(": ")", "{": "}", "[": "]"}
_CONSTANTS = ("e", "E", "i", "I", "j")
CLEARLY = 1e-3
_POINTS = (("0.7391", "1.6180"), ("-1.3247", "0.5671"), ("2.2360", "-0.9159"))
"""Where formulas are compared. Signs are mixed, so that sqrt(x^2) is not x; those of the first are positive."""


class Unreadable(ValueError):
    """Not in the grammar, or refused as too large."""


@lru_cache(maxsize=4096)
def read(text: str) -> Any | None:
    """The sympy expression that `text` (LaTeX, or a plain formula) stands for, or None where it is not read."""
    if not text or len(text) > MAX_CHARACTERS:
        return None
    try:
        value = _Parser(_tokens(text)).whole()
        return None if len(value.free_symbols) > MAX_LETTERS else value
    except (Unreadable, TypeError, ZeroDivisionError, OverflowError):
        return None


def same_value(one: str, other: str) -> bool:
    """Whether both texts are read and have one value: exactly, or to 30 digits at three points for every letter.

    Letters in one that the other lacks make no difference where they cancel.
    """
    a, b = read(one), read(other)
    if a is None or b is None:
        return False
    difference = a - b
    if difference.is_zero or difference.is_Rational:
        return bool(difference.is_zero)
    letters = _letters(difference)
    if len(letters) > MAX_LETTERS:
        return False
    for point in _POINTS if letters else ((),):
        sizes = _sizes((difference, a, b), letters, point)
        if sizes is None or not (sizes[0] <= TOLERANCE * (sizes[1] + sizes[2]) or sizes[0] < ZERO):
            return False
    return True


def differ(one: str, other: str) -> bool:
    """Whether both texts are read and their values are clearly not the same, however one may round: then no slower judge need
    be asked. False where a letter may stand for a constant."""
    a, b = read(one), read(other)
    if a is None or b is None:
        return False
    difference = a - b
    letters = _letters(a, b)
    if len(letters) > MAX_LETTERS or any(letter.name in _CONSTANTS for letter in letters):
        return False
    sizes = _sizes((difference, a, b), letters, _POINTS[0] if letters else ())
    return sizes is not None and sizes[0] > CLEARLY * (sizes[1] + sizes[2])


def _letters(*values: Any) -> list[Any]:
    found = set().union(*(value.free_symbols for value in values))
    return sorted(found, key=lambda letter: letter.name)


def _sizes(values: Sequence[Any], letters: Sequence[Any], point: Sequence[str]) -> list[float] | None:
    """Absolute values with `point` put in for the letters, or None where one has none. Not a number stays that."""
    import sympy

    at = dict(zip(letters, map(sympy.Rational, point), strict=False))
    try:
        return [abs(complex(sympy.N(value.subs(at), DIGITS))) for value in values]
    except (TypeError, ValueError, OverflowError):
        return None


def _tokens(text: str) -> list[str]:
    tokens, at = [], 0
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None:
            raise Unreadable(text[at])
        tokens.append(match[1])
        at = match.end()
    return tokens


class _Parser:
    """Recursive descent; `depth` bounds the recursion."""

    def __init__(self, tokens: list[str]):
        self.tokens, self.at, self.depth = tokens, 0, 0

    def whole(self) -> Any:
        value = self.sum()
        if self.peek() is not None:
            raise Unreadable(self.peek())
        return value

    def peek(self) -> str | None:
        return self.tokens[self.at] if self.at < len(self.tokens) else None

    def take(self, expected: str | None = None) -> str:
        token = self.peek()
        if token is None or expected not in (None, token):
            raise Unreadable(expected)
        self.at += 1
        return token

    def sum(self) -> Any:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise Unreadable("too deep")
        value = self.product()
        while self.peek() in ("+", "-"):
            value = value + self.product() if self.take() == "+" else value - self.product()
        self.depth -= 1
        return value

    def product(self) -> Any:
        value = self.signed()
        while (token := self.peek()) is not None:
            if token in ("*", r"\cdot", r"\times"):
                self.take()
                value = value * self.signed()
            elif token in ("/", r"\div"):
                self.take()
                value = _quotient(value, self.signed())
            elif token == r"\frac" and str(value) == self.tokens[self.at - 1]:
                value = self.mixed(value)
            elif token in ("+", "-", *_CLOSES.values(), "^", "_"):
                break
            elif token[0] in ".0123456789" and self.tokens[self.at - 1][0] in ".0123456789":
                raise Unreadable("digits apart")
            else:
                value = value * self.power()
        return value

    def mixed(self, whole: Any) -> Any:
        """A number before a fraction below 1, such as 2\\frac{1}{2}, is a mixed number; before another, a factor."""
        part = self.power()
        return whole + part if part.is_Rational and 0 < part < 1 else whole * part

    def signed(self) -> Any:
        sign = 1
        while self.peek() in ("+", "-"):
            sign = -sign if self.take() == "-" else sign
        return sign * self.power()

    def power(self) -> Any:
        base = self.atom()
        if self.peek() != "^":
            return base
        self.take()
        start = self.at
        exponent = self.group() if self.peek() == "{" else (-self.atom() if self.peek() == "-" and self.take() else self.atom())
        if self.peek() == "^" or "^" in self.tokens[start : self.at] or (base.is_Pow and base.exp.is_Integer):
            raise Unreadable("powers of powers")
        return _power(base, exponent)

    def group(self) -> Any:
        opened = self.take()
        if opened not in _CLOSES:
            raise Unreadable(opened)
        value = self.sum()
        self.take(_CLOSES[opened])
        return value

    def atom(self) -> Any:
        import sympy

        token = self.peek()
        if token in _CLOSES:
            return self.group()
        token = self.take()
        if token[0].isdigit() or token[0] == ".":
            return sympy.Rational(token)
        if token.isalpha():
            return sympy.Symbol(token + self.index())
        name = token[1:]
        if name == "pi":
            return sympy.pi
        if name == "frac":
            return _quotient(self.argument(), self.argument())
        if name == "sqrt":
            order = self.group() if self.peek() == "[" else sympy.Integer(2)
            return _power(self.argument(), _quotient(sympy.Integer(1), order))
        if name in _FUNCTIONS:
            return self.function(name)
        raise Unreadable(token)

    def argument(self) -> Any:
        return self.group() if self.peek() == "{" else self.atom()

    def index(self) -> str:
        if self.peek() != "_":
            return ""
        self.take()
        if self.peek() != "{":
            return "_" + self.take()
        self.take()
        parts = []
        while self.peek() != "}":
            parts.append(self.take())
        self.take("}")
        return "_" + "".join(parts)

    def function(self, name: str) -> Any:
        import sympy

        base = None
        if name == "log" and self.peek() == "_":
            self.take()
            base = self.argument()
        inner = self.power()
        named: dict[str, Callable[..., Any]] = {
            "arcsin": sympy.asin, "arccos": sympy.acos, "arctan": sympy.atan, "ln": sympy.log,
        }  # fmt: skip
        function = named.get(name) or getattr(sympy, name)
        if name == "exp" and inner.is_number and not abs(float(inner)) < MAX_BITS:
            raise Unreadable("too large")
        return function(inner) if base is None else function(inner, base)


def _quotient(top: Any, bottom: Any) -> Any:
    if bottom.is_zero:
        raise Unreadable("division by 0")
    return top / bottom


def _power(base: Any, exponent: Any) -> Any:
    """base ^ exponent, refused where a number of more than MAX_BITS bits could come of it."""
    if exponent.is_number and not abs(float(exponent.evalf(15)) if exponent.is_real else MAX_BITS) < MAX_BITS:
        raise Unreadable("too large")
    if base.is_Rational and exponent.is_Rational:
        bits = max(base.p.bit_length(), base.q.bit_length())
        if bits * abs(exponent) > MAX_BITS:
            raise Unreadable("too large")
    elif not base.is_Atom and exponent.is_Integer and abs(exponent) > 64:
        raise Unreadable("too large")
    if base.is_zero and exponent.is_number and not exponent.is_positive:
        raise Unreadable("division by 0")
    return base**exponent
