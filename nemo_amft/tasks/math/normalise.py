"""One way of writing for answers that differ in writing alone: spaces, units, delimiters, 1/2 and \\frac12, 142.0 and 142."""

from __future__ import annotations

import re
import unicodedata

MAX_WRAPS = 4
"""Braces around a whole answer that are taken off."""

_SIGNS = {
    "\u2212": "-", "\u2013": "-", "\u00d7": r"\times ", "\u00b7": r"\cdot ", "\u00f7": "/", "\u3001": ",",
    "\u03c0": r"\pi ", "\u221e": r"\infty ", "\u00b0": r"^\circ ", "\u00a0": " ",
}  # fmt: skip
_FULL_WIDTH = range(0xFF01, 0xFF5F)
"""ASCII as wide as a Chinese character."""

_UNIT = (
    r"(?:(?:square|sq|cubic)\.?\s+)?(?:degrees?|cm|mm|km|kg|meters?|metres?|centimeters?|kilometers?|miles?|inch(?:es)?|feet|foot|ft"
    r"|yards?|units?|hours?|minutes?|seconds?|days?|weeks?|months?|years?|dollars?|cents?|points?|percent|mph)(?:\^\{?\d\}?)?"
)

_RULES: list[tuple[re.Pattern[str], str]] = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"\\displaystyle(?![a-zA-Z])|\\left(?![a-zA-Z])|\\right(?![a-zA-Z])|\\limits(?![a-zA-Z])", ""),
        (r"\\[!,;:]|\\q?quad(?![a-zA-Z])|\\ |~", " "),
        (r"\\[dtc]frac(?![a-zA-Z])", r"\\frac"),
        (r"\^\s*(?:\\circ(?![a-zA-Z])|\{\s*\\circ\s*\})|\\degree(?![a-zA-Z])", ""),
        (r"\\?%|\\\$", ""),
        (r"\{,\}", ","),
        # Words behind a number are its unit; a text that stands alone is the answer.
        (r"(?<=[\d})])\s*\\(?:text|textrm|mathrm|rm|mbox)\s*\{[^{}]*\}(?:\^\{?\d\}?)?\s*$", ""),
        (rf"(?<=[\d}})])\s*{_UNIT}\s*$", ""),
        (r"\\(?:text(?:rm|bf|it|sf|tt)?|math(?:rm|bf|it|sf|tt)|mbox|operatorname)\s*\{([^{}]*)\}", r" \1 "),
        (r"\{\s*\\(?:rm|bf|it|sf|tt)(?![a-zA-Z])([^{}]*)\}", r" \1 "),
    )
]

_NAMED = re.compile(r"[A-Za-z](?:_\{?\w+\}?)?=(?=[^=<>]+$)")
"""A name in front of a value, as in x=5."""
_BLANKS = re.compile(r"(?<=\d)(\s)\s*(?=\.?\d)|\s+")
_GROUPS = re.compile(r"(?<![\d.,])(?<!\d )[1-9]\d{0,2}(?: \d{3})+(?![\d.]| \d)")
"""A number in groups of three, as in 10 000. Other digits that stand apart are none: 1 1 is not 11."""
_THOUSANDS = re.compile(r"[+-]?[1-9]\d{0,2}(?:,\d{3})+(?:\.\d+)?")
_DECIMAL = re.compile(r"([+-]?)(\d*)(?:\.(\d*))?")
_SCIENTIFIC = re.compile(r"([+-]?\d+(?:\.\d+)?)[eE]([+-]?\d+)")
_RATIO = re.compile(r"([+-]?)(\d+)/(\d+)")
_WORDS = re.compile(r"[A-Za-z][A-Za-z]+")
_SHORT_FRACTION = re.compile(r"\\frac(?:(\d)|\{([^{}]*)\})(?:(\d)|\{([^{}]*)\})")
_SHORT_ROOT = re.compile(r"\\sqrt(\w)")


def normalise(answer: str) -> str:
    """`answer` in one way of writing; two answers that come out equal are the same.

    Digits of any script count as their values. Degrees, per cent and currency signs and units behind a number are dropped: a
    number is compared with a number. What it cannot read stays as it is.
    """
    text = "".join(map(_ascii, answer)).strip()
    text = undelimited(text)
    for pattern, replacement in _RULES:
        text = pattern.sub(replacement, text)
    text = _BLANKS.sub(lambda blank: " " if blank[1] else "", text.replace("$", "")).strip().rstrip(".")
    text = _GROUPS.sub(lambda number: number[0].replace(" ", ""), text)
    text = _NAMED.sub("", text, count=1) if _NAMED.match(text) else text
    for _ in range(MAX_WRAPS):
        text = text[1:-1] if _is_wrapped(text) else text
    text = _SHORT_ROOT.sub(r"\\sqrt{\1}", _SHORT_FRACTION.sub(_whole_fraction, text))
    if scientific := _SCIENTIFIC.fullmatch(text):
        return f"{scientific[1]}\\times10^{{{int(scientific[2])}}}"
    if _THOUSANDS.fullmatch(text):
        text = text.replace(",", "")
    if ratio := _RATIO.fullmatch(text):
        sign, top, bottom = ratio.groups()
        return f"{_minus(sign)}\\frac{{{top}}}{{{bottom}}}"
    if any(c.isdigit() for c in text) and (number := _DECIMAL.fullmatch(text)):
        sign, whole, part = number.groups()
        part = (part or "").rstrip("0")
        digits = (whole.lstrip("0") or "0") + (f".{part}" if part else "")
        return digits if digits == "0" else _minus(sign) + digits
    return text.casefold() if _WORDS.fullmatch(text) else text


def _ascii(character: str) -> str:
    if character.isascii():
        return character
    if character in _SIGNS:
        return _SIGNS[character]
    if ord(character) in _FULL_WIDTH:
        return chr(ord(character) - _FULL_WIDTH.start + ord("!"))
    value = unicodedata.decimal(character, None)  # not a superscript two, which is no digit of a number
    return character if value is None else str(value)


def undelimited(text: str) -> str:
    """`text` without the dollar signs, or \\(, \\[ and their like, around all of it."""
    for opened, closed in (("$$", "$$"), ("$", "$"), ("\\(", "\\)"), ("\\[", "\\]")):
        inner = text[len(opened) : -len(closed)]
        if len(text) > len(opened) + len(closed) and text.startswith(opened) and text.endswith(closed) and opened not in inner:
            return inner.strip()
    return text


def _is_wrapped(text: str) -> bool:
    """Whether one pair of braces holds all of it."""
    if not (text.startswith("{") and text.endswith("}") and len(text) > 2):
        return False
    depth = 0
    for index, character in enumerate(text):
        depth += {"{": 1, "}": -1}.get(character, 0)
        if depth == 0:
            return index == len(text) - 1
    return False


def _whole_fraction(match: re.Match[str]) -> str:
    top, bottom = (match[1] if match[1] is not None else match[2]), (match[3] if match[3] is not None else match[4])
    return f"\\frac{{{top}}}{{{bottom}}}"


def _minus(sign: str) -> str:
    return "-" if sign == "-" else ""
