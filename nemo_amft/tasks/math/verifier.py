"""Math-Verify on the part of a response that follows its thoughts; runs in child processes.

Math-Verify's own time limits are signal alarms, which raise outside the main thread and do not stop C code. They are switched
off here, so a call may run for ever (9^9^9^9 does): only ever call this through a RewardPool, which kills it.
"""

from __future__ import annotations

import functools
import logging
import re
from dataclasses import dataclass
from typing import Any

from nemo_amft.data.golds import split_golds
from nemo_amft.types import Verdict

THINK_OPEN, THINK_CLOSE = "<think>", "</think>"

DELIMITER = re.compile(r"(?<!\\)\$|\\boxed\b|\\fbox\b|\\\(|\\\[|\\begin\{(?:equation|align|math)")
"""Marks of a gold answer that is already delimited, so that Math-Verify finds it as it stands. A price's "\\$" is none."""

SCIENTIFIC = re.compile(r"[+-]?\d+(?:\.\d+)?[eE][+-]?\d+")
"""A gold answer such as 4.5e33 (Minerva). As LaTeX it would read 4.5 * e * 33."""


def final_part(response: str, thinking: bool) -> str | None:
    """The text to grade: what follows the last "</think>", or all of a response that does not think.

    `thinking` says that the prompt ended with "<think>", which is put back first. None if the thoughts were never closed or
    were opened again after the last close. With two closes the text between them counts as thoughts.
    """
    text = f"{THINK_OPEN}\n{response}" if thinking else response
    if THINK_OPEN not in text and THINK_CLOSE not in text:
        return text
    _, closed, rest = text.rpartition(THINK_CLOSE)
    return rest if closed and THINK_OPEN not in rest else None


@functools.lru_cache(maxsize=4096)
def parse_gold(answer: str) -> tuple[Any, ...]:
    """Math-Verify's readings of a gold answer, any of which may match: wrapped as "$...$" unless it carries delimiters.

    Cached because the n responses to a prompt share it.
    """
    from math_verify import parse

    answer = answer.strip()
    delimited = answer if DELIMITER.search(answer) else f"${answer}$"
    readings = parse(delimited, parsing_timeout=None)
    if SCIENTIFIC.fullmatch(answer):
        mantissa, exponent = re.split("[eE]", answer)
        readings = parse(f"${mantissa} \\times 10^{{{int(exponent)}}}$", parsing_timeout=None) + readings
    return tuple(readings)


@dataclass(frozen=True)
class MathVerifier:
    """Reward 1 if Math-Verify finds the final part equal to a gold answer, else 0; no bonus for format.

    Source: Math-Verify (huggingface/Math-Verify 0.9.0), gold first, as its comparison is not symmetric.
    """

    thinking: bool
    """The chat template ends a prompt with "<think>\\n", so responses start inside the thoughts."""

    def __post_init__(self) -> None:
        # Each says once that its time limit is off. It is off on purpose.
        logging.getLogger("math_verify").setLevel(logging.ERROR)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Import Math-Verify while a child starts rather than under the first response's time limit."""
        self.__dict__.update(state)
        self.__post_init__()
        parse_gold("0")

    def __call__(self, answer: str, response: str, finished: bool) -> Verdict:
        """See Verifier. A gold answer that Math-Verify cannot read is an "error", lest the response be taken for wrong."""
        from math_verify import parse, verify

        if not finished:
            return Verdict(0.0, False, detail="cut by the length limit")
        text = final_part(response, self.thinking)
        if text is None:
            return Verdict(0.0, False, detail="thoughts not closed")
        gold = [reading for one in split_golds(answer) for reading in parse_gold(one)]
        if not gold:
            return Verdict(0.0, False, "error", f"gold answer {answer!r} cannot be parsed")
        predicted = parse(text, parsing_timeout=None)
        correct = verify(gold, predicted, timeout_seconds=None)
        return Verdict(float(correct), correct)
