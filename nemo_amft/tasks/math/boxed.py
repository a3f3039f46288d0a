"""The last \\boxed{...} of a text. Plain text in, plain text out: no library, no recursion, linear in the length."""

from __future__ import annotations

import re

_BOX = re.compile(r"\\(?:boxed|fbox)(?![a-zA-Z])\s*")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
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
