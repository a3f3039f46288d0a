"""What Math-Verify makes of gold answers and responses, with the writings that it misreads put right (numerals.py)."""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from itertools import product
from typing import Any

from nemo_amft.data.boxed import boxes, with_boxes
from nemo_amft.tasks.math.equality import equal
from nemo_amft.tasks.math.normalise import undelimited
from nemo_amft.tasks.math.numerals import numeral, scientific_as_latex, without_percent

DELIMITER = re.compile(r"(?<!\\)\$|\\boxed\b|\\fbox\b|\\\(|\\\[|\\begin\{(?:equation|align|math)")
"""Marks of a gold answer that is already delimited, so that Math-Verify finds it as it stands. A price's "\\$" is none."""

MAX_POWER_OF_TEN = 10_000
"""Above it a product with a decimal stays one: it may take long to compute."""

_PERCENT_IN_DOLLARS = re.compile(r"(?<![\\$])\$([^$\n]*?[\d})])\s*\\?%\s*\$(?!\$)")
_FINAL_ANSWER = re.compile(r"final answer is", re.IGNORECASE)


@dataclass(frozen=True)
class Reading:
    """One answer."""

    values: tuple[Any, ...]
    """sympy expressions, and texts of what is none; any may be meant."""
    percent: bool = False
    """It ends in a percent sign, which the values leave out."""


@functools.lru_cache(maxsize=4096)
def read_answer(answer: str) -> Reading:
    """An answer that stands alone, a gold one or what a box holds, with delimiters or without. Cached, as the n responses to a
    prompt share a gold answer, and often their own."""
    answer = answer.strip()
    inner = undelimited(answer)
    spans = boxes(inner)
    if len(spans) == 1 and inner[: spans[0][0]].strip() in ("\\boxed{", "\\fbox{") and inner[spans[0][1] :] == "}":
        inner = undelimited(inner[slice(*spans[0])].strip())
    if DELIMITER.search(inner):
        return _read_text(answer)
    bare, percent = without_percent(inner)
    number = numeral(bare)
    if number is None:
        return Reading(_parse(f"${bare}$"), percent)
    if not number.forms:
        return Reading((number.text,), percent)
    return Reading(tuple(value for form in number.forms for value in _parse(f"${form}$")), percent)


def read_response(text: str) -> Reading:
    """The answer in a free text: where Math-Verify looks for it, which is the last box first."""
    spans = boxes(text)
    answers = {text[begin:end].strip() for begin, end in spans}
    if len(answers) == 1 and not _FINAL_ANSWER.search(text, spans[-1][1]):
        (answer,) = answers
        bare, percent = without_percent(answer)
        if percent or numeral(bare) is not None:
            return read_answer(answer)
    return _read_text(text)


def same(gold: Reading, found: Reading) -> bool:
    """Whether any two values are equal; 50% is 50 or 0.5 to an answer without a percent sign. May run for ever."""
    pairs = list(product(gold.values, found.values))
    if gold.percent != found.percent:
        pairs += [(_hundredth(g), f) if gold.percent else (g, _hundredth(f)) for g, f in pairs]
    return any(equal(g, f) for g, f in pairs)


def _read_text(text: str) -> Reading:
    text = with_boxes(text, _as_latex)
    text = _PERCENT_IN_DOLLARS.sub(r"$\1$ %", text) if "%" in text else text
    values = _parse(scientific_as_latex(text))
    bare = tuple(map(_without_hundredth, values))
    return Reading(bare, any(b is not v for b, v in zip(bare, values, strict=True)))


def _as_latex(answer: str) -> str:
    r"""What one of several boxes holds, without percent: 1\,000 as 1000. Where it may be taken in two ways, as it stands."""
    bare, _ = without_percent(answer)
    number = numeral(bare)
    return number.forms[0] if number is not None and len(number.forms) == 1 else bare


def _parse(text: str) -> tuple[Any, ...]:
    from math_verify import parse

    return tuple(map(_as_decimal, parse(text, parsing_timeout=None)))


def _as_decimal(value: Any) -> Any:
    """Math-Verify leaves 6.63 times 10^-34 as a product, and rounds decimals only."""
    from sympy import Float, Mul, Number

    factors = value.args if isinstance(value, Mul) else ()
    decimal = any(isinstance(factor, Float) for factor in factors) and all(
        isinstance(factor, Number) or _is_power_of_ten(factor) for factor in factors
    )
    return value.doit() if decimal else value


def _is_power_of_ten(value: Any) -> bool:
    return value.is_Pow and value.base == 10 and value.exp.is_Integer and abs(value.exp) < MAX_POWER_OF_TEN


def _without_hundredth(value: Any) -> Any:
    """Math-Verify reads "5 percent" as 5 times an unevaluated hundredth."""
    from sympy import Mul, UnevaluatedExpr

    if not isinstance(value, Mul) or not any(isinstance(factor, UnevaluatedExpr) for factor in value.args):
        return value
    return Mul(*(factor for factor in value.args if not isinstance(factor, UnevaluatedExpr)))


def _hundredth(value: Any) -> Any:
    from sympy import Expr, Rational

    return value * Rational(1, 100) if isinstance(value, Expr) else value
