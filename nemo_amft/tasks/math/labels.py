r"""Which option of a multiple choice a short text names: C, (C), \text{Option C}, {\rm C}, "C - some text", "D) both A. and B."

Plain text in, a letter or number out; no library, linear in the length.
"""

from __future__ import annotations

import re
import unicodedata

MAX_CHARACTERS = 1000
MAX_NESTED = 8
"""Fonts around fonts that are taken off."""

_FONTS = (
    r"text[a-z]*|math(?:rm|bf|sf|tt|it|normal)|mbox|hbox|boxed|fbox|framebox|emph|underline|operatorname\*?|boldsymbol|bm|pmb"
)
_DRESSED = re.compile(rf"\\(?:{_FONTS})\s*\{{([^{{}}]*)\}}")
_COLOUR = re.compile(r"\\(?:text)?color\s*\{[^{}]*\}")
_DECLARED = re.compile(
    r"\\(?:rm|bf|it|sf|tt|sc|em|tiny|small|normalsize|large|Large|LARGE|huge|Huge|bfseries|rmfamily|displaystyle|textstyle"
    r"|left|right|q?quad|hfill)(?![a-zA-Z])|\\[,;:!. ()\[\]]|[~$`*_{}\"\u201c\u201d]"
)
_BODY = "\u2026"
"""Stands for an option's own words, whatever letters they mention."""

_CALLED = re.compile(
    r"(?:the\s+)?(?:(?:correct|right|best|final)\s+)*(?:answer|option|choice)(?:\s+is)?\s*[:=]?\s*(?:(?:option|choice|letter)\s+)?"
    r"(?=[(\[]?(?:[A-Za-z]|\d{1,2})(?![A-Za-z\d]))",
    re.IGNORECASE,
)
_LABEL = re.compile(
    r"(?P<open>[(\[]?)\s*(?P<label>[A-Za-z]|\d{1,2})\s*"
    r"(?P<end>[)\]]\s*[.:]?|[.:](?!\d)|(?:(?<=\s)-+|-+(?=\s)|[\u2013\u2014])"
    r"|(?<=\s)(?=because\b|since\b|\([^()]*[A-Za-z]{3})|,(?=\s+[A-Za-z]{3}))?(?P<rest>.*)",
    re.DOTALL,
)
_ANOTHER = re.compile(r"\s*(?:(?:or|and)\b|[,;/&+])\s*[(\[]?[A-Z](?![A-Za-z])")
"""A second label right behind the first."""
_ALONE = re.compile(r"\s*[(\[]?[A-Z][)\]]?[.:]?\s*")
_REFERS = re.compile(
    r"\s*(?:all|both|none|neither|either|any|each|every|only|options?|choices?|statements?|answers?)\b", re.IGNORECASE
)
"""How options begin that are made of others: "all of A., B. and C."."""
_BETWEEN = rf"(?:^|[,;/&\n{_BODY}]|\bor\b|\band\b)\s*"
_LIKE = {
    "(": re.compile(rf"{_BETWEEN}[(\[][A-Z][)\]]"),
    ")": re.compile(rf"{_BETWEEN}[A-Z][)\]]"),
    ".": re.compile(rf"{_BETWEEN}[A-Z]\."),
    ":": re.compile(rf"{_BETWEEN}[A-Z]:"),
    "-": re.compile(rf"{_BETWEEN}[A-Z]\s+[-\u2013\u2014]"),
}
"""A second label, by how the first is written: who names two so has not chosen."""


def option(text: str) -> str | None:
    """The letter (upper case) or number of the option that `text` names, or None where it names none, or more than one."""
    text = unicodedata.normalize("NFKC", _COLOUR.sub("", text[:MAX_CHARACTERS])).replace("\u2212", "-")
    return _named(_plain(_DRESSED.sub(_masked, text))) or _named(_plain(text))


def lone_letter(gold: str) -> str | None:
    """The letter that a gold answer is, if it is an option's, A to J, and nothing else; a bare small letter is a variable."""
    letter = re.fullmatch(r"[(\[]?([A-J])[)\]]?[.:]?", _plain(gold[:MAX_CHARACTERS]))
    return None if letter is None else letter[1]


def names_gold(gold: str, boxed: str) -> bool:
    """Whether `gold` is an option's letter and nothing else, and `boxed` names that option."""
    letter = lone_letter(gold)
    return letter is not None and option(boxed) == letter


def _masked(match: re.Match[str]) -> str:
    """An option's words in a font of their own, as in D) \\text{both A. and B.}; those that go on naming options stay."""
    body = match[1]
    return body if _ANOTHER.match(body) or not re.search(r"[A-Za-z]{2}", body) else _BODY


def _plain(text: str) -> str:
    for _ in range(MAX_NESTED):
        text, found = _DRESSED.subn(r"\1", text)
        if not found:
            break
    return " ".join(_DECLARED.sub(" ", text).split())


def _named(text: str) -> str | None:
    match = _LABEL.fullmatch(_CALLED.sub("", text, count=1) if _CALLED.match(text) else text)
    if match is None:
        return None
    name, end, rest = match["label"].upper(), match["end"], match["rest"]
    if not rest.strip():
        return name
    if end is None or _ANOTHER.match(rest) or _ALONE.fullmatch(rest):
        return None  # a word, "A and B", "A - B"
    style = "(" if match["open"] else end[0] if end and end[0] in ").:" else "-"
    if name.isdigit() and style == "-" and not re.search(r"[A-Za-z]{2}", rest):
        return None  # 3 - 2
    return None if _LIKE[style].search(rest) and not _REFERS.match(rest) else name
