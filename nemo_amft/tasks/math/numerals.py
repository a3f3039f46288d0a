r"""Numbers in writings that Math-Verify misreads: 12.5\%, 10\,000, 3,14, 2 1/2, 4.5e-19, and "1 1", which is no number.

Plain text in, LaTeX out: no library, linear in the length.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_UNIT = re.compile(
    r"^\\?[$\u20ac\u00a3]|(?<=\d)(?:\s|~|\\[ ,;:])*"
    r"(?:\\(?:text|textrm|mathrm|mbox)\s*\{[^{}]*\}(?:\^\{?\d\}?)?|[\u20ac\u00a3])\s*$"
)
"""What stands around a number and is no part of it: a currency's sign, a unit in LaTeX's upright font."""
_SPACES = re.compile(r"(?:\s|~|\\[ ,;:]|\\q?quad(?![a-zA-Z]))+")
_PERCENT = re.compile(
    r"(?<=[\d})])(?:\s|~|\\[ ,;:!])*(?:\\?%|\\(?:text|textrm|mathrm|mbox)\s*\{\s*(?:per\s?cent(?:age)?|pct|\\?%)\s*\}"
    r"|(?:per\s?cent(?:age)?|pct)(?!\s*[a-zA-Z]))"
)
_ENDS_IN_PERCENT = re.compile(rf"(?:{_PERCENT.pattern})[.\s$]*$")

_THOUSANDS = re.compile(r"[+-]?[1-9]\d{0,2}(?:(?:,|\{,\})\d{3})+")
_COMMA = re.compile(r"([+-]?\d+)(,|\{,\})(\d+)")
_POINTS_AND_COMMA = re.compile(r"([+-]?\d{1,3}(?:[. ]\d{3})+)(?:,|\{,\})(\d+)")
_GROUPS = re.compile(r"[+-]?[1-9]\d{0,2}(?: \d{3})+(?:\.\d+)?")
_LONG_DECIMAL = re.compile(r"[+-]?\d+\.\d{3}(?: \d{3})* \d{1,3}")
_MIXED = re.compile(r"([+-]?\d+) (\d+)/(\d+)")
_SCIENTIFIC = re.compile(r"([+-]?(?:\d+(?:\.\d*)?|\.\d+))[eE]([+-]?\d{1,6})")
_APART = re.compile(r"[+-]?(?:\d+(?:\.\d+)?|\.\d+)(?: (?:\d+(?:\.\d+)?|\.\d+))+")

_MATHEMATICS = re.compile(r"\$|\\\(|\\\[|\\boxed")
_PROSE_SCIENTIFIC = re.compile(r"(?<![\w.])([+-]?\d+(?:\.\d+)?)[eE]([+-]?\d{1,4})(?!\w|\.\d)")


@dataclass(frozen=True)
class Numeral:
    """A number in such a writing."""

    text: str
    """As written, with single spaces."""
    forms: tuple[str, ...]
    """LaTeX for each way to take it: 3,14 is a decimal or two numbers. Empty where digits stand apart and are no number."""


def numeral(text: str) -> Numeral | None:
    """What `text`, a whole answer without percent, is as a number, or None where Math-Verify may read it as it stands."""
    text = _UNIT.sub("", text.replace("\\!", "").replace("\u2212", "-").strip(" $"))
    text = _SPACES.sub(" ", text).strip()
    return None if (forms := _forms(text)) is None else Numeral(text, forms)


def _forms(text: str) -> tuple[str, ...] | None:
    if scientific := _SCIENTIFIC.fullmatch(text):
        return (_power_of_ten(scientific), text)  # 2e-1 may be twice Euler's number, less 1
    if both := _POINTS_AND_COMMA.fullmatch(text):
        return (f"{re.sub('[. ]', '', both[1])}.{both[2]}",)
    if _GROUPS.fullmatch(text) or _LONG_DECIMAL.fullmatch(text):
        return (text.replace(" ", ""),)
    if mixed := _MIXED.fullmatch(text):
        return (f"{mixed[1]}\\frac{{{mixed[2]}}}{{{mixed[3]}}}",)
    if _APART.fullmatch(text):
        return ()
    comma = None if _THOUSANDS.fullmatch(text) else _COMMA.fullmatch(text)
    # Of "-3,0" a decimal would be -3 alone, and half the answer.
    if comma is None or (comma[2] == "," and not comma[3].strip("0")):
        return None
    decimal = f"{comma[1]}.{comma[3]}"
    return (decimal,) if comma[2] != "," else (decimal, text)


def without_percent(text: str) -> tuple[str, bool]:
    r"""`text` without the percent signs and words behind its numbers, and whether it ends in one: 28% and 28\% are one."""
    return _PERCENT.sub("", text), _ENDS_IN_PERCENT.search(text) is not None


def scientific_as_latex(text: str) -> str:
    r"""Prose with 4.5e-19 as $4.5 \times 10^{-19}$. A text with mathematics in it is left as it is."""
    if _MATHEMATICS.search(text):
        return text
    return _PROSE_SCIENTIFIC.sub(lambda match: f"${_power_of_ten(match)}$", text)


def _power_of_ten(match: re.Match[str]) -> str:
    return f"{match[1]} \\times 10^{{{int(match[2])}}}"
