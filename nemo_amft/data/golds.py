"""More than one plain answer in the one text that an Example has for it: several golds, and who is to grade.

The marks are ASCII's separators of records and units, which no answer holds (data/schemas.py refuses them).
"""

from __future__ import annotations

import re
from collections.abc import Sequence

_BETWEEN_GOLDS, _AFTER_GRADER = "\x1e", "\x1f"
MARKS = {_BETWEEN_GOLDS, _AFTER_GRADER}

_NO_ANSWER = re.compile(
    r"(?:the )?proofs?(?: (?:is )?(?:omitted|needed|required|only|given|complete))?(?: (?:above|below))?|proof by \w+(?: \w+)?"
    r"|see (?:the )?(?:proof|solution|explanation|above|below)(?: (?:above|below))?"
    r"|(?:to (?:be )?)?(?:prove|proved|proven)(?: (?:it|this|above))?|q\.? ?e\.? ?d|unprovable"
    r"|(?:the )?(?:answer |solution )?(?:is )?not ?(?:found|available|provided|given|applicable)"
    r"|no (?:final )?answer(?: (?:found|available|provided|given))?|#?n/a"
)
_WRAPPED = re.compile(r"\\(?:boxed|fbox|mbox|text\w*|mathrm)\s*\{([^{}]*)\}")


def join_golds(golds: Sequence[str]) -> str:
    """One text for `golds`, any of which is right; a single one stands as it is."""
    return _BETWEEN_GOLDS.join(golds)


def split_golds(answer: str) -> list[str]:
    """The golds that `answer`, of `join_golds`, holds."""
    return answer.split(_BETWEEN_GOLDS)


def for_grader(grader: str, answer: str) -> str:
    """`answer` with the name of who is to grade it: "math_verify", "oat" or "choice"."""
    return f"{grader}{_AFTER_GRADER}{answer}"


def split_grader(answer: str) -> tuple[str, str]:
    """The grader that `answer` names, "" for none, and the answer without it."""
    grader, mark, rest = answer.partition(_AFTER_GRADER)
    return (grader, rest) if mark else ("", answer)


def readable(answer: str) -> str:
    """The golds of an Example's answer, for people."""
    return " or ".join(split_golds(split_grader(answer)[1]))


def unprovable(answer: str) -> bool:
    """Whether no response can be graded by `answer`: "proof", "notfound" and their like, which sets hold where a problem asks
    for a proof or its answer was lost. Of several golds, all are so."""
    return all(_NO_ANSWER.fullmatch(_folded(gold)) for gold in split_golds(split_grader(answer)[1]))


def _folded(gold: str) -> str:
    for _ in range(3):
        gold = _WRAPPED.sub(r"\1", gold[:200])
    return " ".join(re.sub(r"[_\s-]+", " ", gold.casefold()).strip(" .!:;$\"'()[]{}<>*").split())
