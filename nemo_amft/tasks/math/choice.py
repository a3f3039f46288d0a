"""Multiple choice by the letter in the last box."""

from __future__ import annotations

from dataclasses import dataclass

from nemo_amft.data.boxed import last_boxed
from nemo_amft.data.golds import split_golds
from nemo_amft.tasks.math.labels import option
from nemo_amft.tasks.math.verifier import final_part
from nemo_amft.types import Verdict


@dataclass(frozen=True)
class ChoiceVerifier:
    """Reward 1 if the last box of the final part names the gold option, else 0.

    The box may hold the letter alone, or with its text, as models write it (labels.py): C, (C), \\text{C}, "C) some text".
    Where the gold is a digit, the options are numbered: the digit counts, and so does the letter of that place.
    """

    thinking: bool
    """As MathVerifier's."""

    def __call__(self, answer: str, response: str, finished: bool) -> Verdict:
        """See Verifier."""
        if not finished:
            return Verdict(0.0, False, detail="cut by the length limit")
        text = final_part(response, self.thinking)
        boxed = None if text is None else last_boxed(text)
        if boxed is None:
            return Verdict(0.0, False, detail="thoughts not closed" if text is None else "no box")
        chosen = option(boxed)
        correct = chosen is not None and any(_matches(gold.strip().upper(), chosen) for gold in split_golds(answer))
        return Verdict(float(correct), correct, detail="" if chosen else "no option named")


def _matches(gold: str, chosen: str) -> bool:
    return chosen == gold or (gold.isdigit() and chosen.isalpha() and ord(chosen) - ord("A") + 1 == int(gold))
