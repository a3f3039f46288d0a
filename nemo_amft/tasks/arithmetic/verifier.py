"""Verifier of arithmetic answers; runs in child processes, so it imports nothing heavy."""

from __future__ import annotations

import re

from nemo_amft.types import Verdict

MAX_DIGITS = 100
"""Far beyond any answer, and below the length from which the interpreter refuses to convert text to an integer (4300)."""

INTEGER = re.compile(rf"-?[0-9]{{1,{MAX_DIGITS}}}")


def verify(answer: str, response: str, finished: bool) -> Verdict:
    """Reward 1 if the text after the last '#' is the integer `answer`; steps are not judged, unfinished responses earn 0."""
    if not finished:
        return Verdict(0.0, False, detail="cut by the length limit")
    _, mark, result = response.rpartition("#")
    if not mark or INTEGER.fullmatch(result.strip()) is None:
        return Verdict(0.0, False, detail="no integer after '#'")
    correct = int(result) == int(answer)
    return Verdict(float(correct), correct)
