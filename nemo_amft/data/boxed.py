"""The last \\boxed{...} of a text. Plain text in, plain text out: no library, no recursion, linear in the length."""

from __future__ import annotations

import re
from collections.abc import Callable

_BOX = re.compile(r"\\(?:boxed|fbox)(?![a-zA-Z])\s*")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
_BOX_OR_BRACE = re.compile(r"(?P<box>\\(?:boxed|fbox)\s*\{)|\\.|[{}]", re.DOTALL)
_BARE = re.compile(r"[^\s$]+")


def last_boxed(text: str) -> str | None:
    """What the last \\boxed or \\fbox of `text` holds, outer spaces removed; None without one, or where it is never closed.

    Only the last counts: earlier ones may be intermediate results or guesses. "\\boxed 5" holds up to the next space or "$".
    """
    start = max(text.rfind("\\boxed"), text.rfind("\\fbox"))
    head = _BOX.match(text, start) if start >= 0 else None
    if head is None:
        return None
    begin = head.end()
    if not text.startswith("{", begin):
        bare = _BARE.match(text, begin)
        return bare.group().rstrip(".,;") if bare else None
    depth = 0
    for mark in _BRACE.finditer(text, begin):  # "\\{" is a brace to print and counts for nothing
        depth += {"{": 1, "}": -1}.get(mark.group(), 0)
        if depth == 0:
            return text[begin + 1 : mark.start()].strip()
    return None


def boxes(text: str) -> list[tuple[int, int]]:
    """(begin, end) of what each closed box of `text` holds, in their order, without those inside others."""
    found, opened = [], []
    first = _BOX.search(text)
    for mark in _BOX_OR_BRACE.finditer(text, first.start()) if first else ():
        if mark["box"] or mark.group() == "{":
            opened.append((bool(mark["box"]), mark.end()))
        elif mark.group() == "}" and opened:
            is_box, begin = opened.pop()
            if is_box:
                while found and found[-1][0] > begin:
                    found.pop()
                found.append((begin, mark.start()))
    return found


def with_boxes(text: str, change: Callable[[str], str]) -> str:
    """`text` with what each box holds put through `change`."""
    parts, at = [], 0
    for begin, end in boxes(text):
        parts += [text[at:begin], change(text[begin:end])]
        at = end
    return "".join([*parts, text[at:]])
