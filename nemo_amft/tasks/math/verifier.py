"""Math-Verify on the part of a response that follows its thoughts; runs in child processes.

Math-Verify's own time limits are signal alarms, which raise outside the main thread and do not stop C code. They are switched
off here, so a call may run for ever (9^9^9^9 does): only ever call this through a RewardPool, which kills it.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

from nemo_amft.data.boxed import last_boxed
from nemo_amft.data.golds import split_golds
from nemo_amft.tasks.math.labels import names_gold
from nemo_amft.tasks.math.readings import read_answer, read_response, same
from nemo_amft.types import Verdict

THINK_OPEN, THINK_CLOSE = "<think>", "</think>"


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


@dataclass(frozen=True)
class MathVerifier:
    """Reward 1 if Math-Verify finds the final part equal to a gold answer, else 0; no bonus for format.

    Source: Math-Verify (huggingface/Math-Verify 0.9.0), gold first, as its comparison is not symmetric. Numbers that it
    misreads are put right (readings.py), small ones told apart (equality.py), and where the gold is an option's letter, the
    last box may name it as in labels.py.
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
        read_answer("0")

    def __call__(self, answer: str, response: str, finished: bool) -> Verdict:
        """See Verifier. A gold answer that Math-Verify cannot read is an "error", lest the response be taken for wrong."""
        if not finished:
            return Verdict(0.0, False, detail="cut by the length limit")
        text = final_part(response, self.thinking)
        if text is None:
            return Verdict(0.0, False, detail="thoughts not closed")
        golds = split_golds(answer)
        boxed = last_boxed(text)
        if boxed is not None and any(names_gold(gold, boxed) for gold in golds):
            return Verdict(1.0, True)
        readings = [reading for gold in golds if (reading := read_answer(gold)).values]
        if not readings:
            return Verdict(0.0, False, "error", f"gold answer {answer!r} cannot be parsed")
        found = read_response(text)
        correct = any(same(gold, found) for gold in readings)
        return Verdict(float(correct), correct)
