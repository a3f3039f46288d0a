"""Multiple choice by the letter in the last box."""

from __future__ import annotations

import re
from dataclasses import dataclass

from nemo_amft.data.golds import split_golds
from nemo_amft.tasks.math.boxed import last_boxed
from nemo_amft.tasks.math.normalise import normalise
from nemo_amft.tasks.math.verifier import final_part
from nemo_amft.types import Verdict

_LABEL = re.compile(r"\(?(?P<label>[A-Za-z]|\d{1,2})(?P<end>\)[.:]?|[.:](?!\d))?(?P<rest>.*)", re.DOTALL)
_OTHER = re.compile(r"(?:^|[,;/&]|\bor|\band)\s*(?:\([A-Z]\)|[A-Z][).:])")
"""Another option's label: who names two has not chosen."""


@dataclass(frozen=True)
class ChoiceVerifier:
    """Reward 1 if the last box of the final part names the gold option, else 0.

    The box may hold the letter alone, or with its text: C, (C), \\text{C}, "C) some text". Where the gold is a digit, the
    options are numbered: the digit counts, and so does the letter of that place.
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
        chosen = label(boxed)
        correct = chosen is not None and any(_matches(gold.strip().upper(), chosen) for gold in split_golds(answer))
        return Verdict(float(correct), correct, detail="" if chosen else "no option named")


def label(boxed: str) -> str | None:
    """The letter (upper case) or number of the option that a box names, or None where it names none, or more than one."""
    text = re.sub(r"\\(?:text|textbf|mathrm|mathbf|mbox|boxed)\s*\{([^{}]*)\}", r"\1", boxed[:1000]).replace("$", "").strip()
    match = _LABEL.fullmatch(text)
    if match is None or _OTHER.search(match["rest"].strip()):
        return None
    if match["rest"] and not match["end"]:
        return None  # a word, or "A and B"
    return normalise(match["label"]).upper()


def _matches(gold: str, chosen: str) -> bool:
    return chosen == gold or (gold.isdigit() and chosen.isalpha() and ord(chosen) - ord("A") + 1 == int(gold))
