"""Whether Math-Verify's expressions are equal, however small the numbers.

Math-Verify compares decimals to six places and exact values to 15, whatever their size, so that 1/2^98 is 1/2^99 and 4e-7 is
5e-7. Its `verify` takes the number of places, which are chosen here by the smallest number at hand.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

PLACES, EXACT_PLACES = 6, 15
"""Math-Verify's own, for decimals and for exact values."""

SIGNIFICANT = 5
"""Digits of a decimal that count where it is so small that PLACES show fewer: 0.012346 is 1/81, and 4.5e-7 is not 4.6e-7."""

MAX_PLACES = 20_000
"""Of smaller numbers only equal expressions are equal: computing with so many digits would take too long."""


def equal(gold: Any, found: Any) -> bool:
    """Whether two of Math-Verify's readings (sympy expressions, or texts) are equal for it, and their smallest numbers too.

    May run for ever, as Math-Verify may.
    """
    from math_verify import verify
    from sympy import Float

    agreed = verify(gold, found, timeout_seconds=None)
    if isinstance(gold, str) or isinstance(found, str) or gold == found:
        return bool(agreed)
    decimal = gold.has(Float) or found.has(Float)
    if agreed or decimal:  # at six places a small decimal and the fraction that it rounds are two zeros, which differ
        places, exact_places = _places((gold, found), decimal)
        if exact_places > MAX_PLACES:
            return False
        if (places, exact_places) != (PLACES, EXACT_PLACES):
            agreed = verify(gold, found, float_rounding=places, numeric_precision=exact_places, timeout_seconds=None)
    return bool(agreed)


def _places(both: tuple[Any, Any], decimal: bool) -> tuple[int, int]:
    """Decimal places that tell the numbers in both apart: of decimals, and of exact values.

    Those of decimals come from whole numbers (2 times 10^-19 is one); exact values hide small parts, as 1 - 2^-99 does.
    """
    whole = min((size for value in both for size in _sizes(value, parts=False)), default=0)
    smallest = whole if decimal else min((size for value in both for size in _sizes(value, parts=True)), default=0)
    return max(PLACES, SIGNIFICANT - 1 - whole), max(EXACT_PLACES, EXACT_PLACES - 1 - smallest)


def _sizes(value: Any, parts: bool) -> Iterator[int]:
    """Powers of ten of the numbers in an expression other than 0, with those that they are computed from if `parts`."""
    from sympy import Basic, MatrixBase

    waiting = [value]
    while waiting:
        node = waiting.pop()
        number = isinstance(node, Basic) and getattr(node, "is_number", False)
        if number and (size := _power_of_ten(node)) is not None:
            yield size
        if parts or not number:
            waiting += node.flat() if isinstance(node, MatrixBase) else getattr(node, "args", ())


def _power_of_ten(number: Any) -> int | None:
    """floor(log10 |number|), or None of 0 and of what has no value."""
    from mpmath import floor, log10, mpf
    from sympy import Float

    size = abs(number.evalf(15))
    return int(floor(log10(mpf(size)))) if isinstance(size, Float) and size.is_finite and size != 0 else None
