"""The grader of reports: the last box alone, compared as text, by value, and by Math-Verify."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

from nemo_amft.data.boxed import last_boxed
from nemo_amft.data.golds import split_golds
from nemo_amft.tasks.math.expression import differ, same_value
from nemo_amft.tasks.math.labels import names_gold
from nemo_amft.tasks.math.normalise import normalise, undelimited
from nemo_amft.tasks.math.numerals import numeral, without_percent
from nemo_amft.tasks.math.readings import read_answer, same
from nemo_amft.tasks.math.verifier import final_part
from nemo_amft.types import Verdict

LONG, TOO_LONG = 128, 4096
"""Characters above which an answer must not repeat itself, and above which it is no answer at all."""

REPEATED_SHARE = 0.2
"""Share of an answer's substrings that occur earlier in it, above which it is a loop and not an answer."""


@dataclass(frozen=True)
class OatVerifier:
    """Reward 1 if the last \\boxed of the final part agrees with a gold answer, else 0.

    Agrees: as normalised text; or by value, tuples element by element; or for Math-Verify, both between dollar signs. Any of
    several golds will do. Named after the grader of the Oat project, whose rules these are. To be called through a RewardPool
    only, as Math-Verify may run for ever.
    """

    thinking: bool
    """As MathVerifier's."""

    def __post_init__(self) -> None:
        logging.getLogger("math_verify").setLevel(logging.ERROR)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Import the libraries while a child starts rather than under the first response's time limit."""
        self.__dict__.update(state)
        self.__post_init__()
        agrees("x+1", "1 + x")
        read_answer("0")

    def __call__(self, answer: str, response: str, finished: bool) -> Verdict:
        """See Verifier."""
        if not finished:
            return Verdict(0.0, False, detail="cut by the length limit")
        text = final_part(response, self.thinking)
        boxed = None if text is None else last_boxed(text)
        if boxed is None:
            return Verdict(0.0, False, detail="thoughts not closed" if text is None else "no box")
        if len(boxed) > TOO_LONG or (len(boxed) > LONG and repeated_share(boxed) > REPEATED_SHARE):
            return Verdict(0.0, False, detail="too long or repetitive")
        correct = any(agrees(gold, boxed) for gold in split_golds(answer))
        return Verdict(float(correct), correct)


def agrees(gold: str, boxed: str) -> bool:
    """Whether the two answers are the same; a gold may bring a box of its own."""
    gold = last_boxed(gold) or gold
    if names_gold(gold, boxed):
        return True
    ours, theirs = writings(gold, boxed)
    if not (ours and theirs):
        return normalise(gold) == normalise(boxed) != ""
    pairs = [(one, other) for one in map(normalise, ours) for other in map(normalise, theirs) if other]
    if any(one == other or _by_value(one, other) for one, other in pairs):
        return True
    if all(differ(one, other) for one, other in pairs):
        return False  # Math-Verify would say so too, and is far slower
    return same(read_answer(gold), read_answer(boxed))


def writings(gold: str, boxed: str) -> tuple[list[str], list[str]]:
    """Ways to take each of the two, none for digits that are no number; the one of them that is a percentage as a share too."""
    found, percent = [], []
    for answer in (gold, boxed):
        bare, ends = without_percent(undelimited(answer.strip()))
        number = numeral(bare)
        found.append([bare] if number is None else list(number.forms))
        percent.append(ends)
    if percent[0] != percent[1]:
        side = found[percent.index(True)]
        side += [rf"\frac{{{form}}}{{100}}" for form in side]
    return found[0], found[1]


def elements(text: str) -> list[str]:
    """The elements of a tuple or interval, "(a,b)" or "[a,b)", split at commas outside inner brackets; else `text` alone."""
    if len(text) < 3 or text[0] not in "([" or text[-1] not in ")]":
        return [text]
    parts, depth = [""], 0
    for character in text[1:-1]:
        depth += {"(": 1, "[": 1, "{": 1, ")": -1, "]": -1, "}": -1}.get(character, 0)
        if depth < 0:
            return [text]  # (a)(b): the outer brackets are no pair
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return parts if len(parts) > 1 and depth == 0 else [text]


def repeated_share(text: str) -> float:
    """Share of the n(n+1)/2 substrings of `text` that are equal to one that starts earlier: 0 if all differ, near 1 for a loop.

    By a suffix automaton: a state stands for as many distinct substrings as it is longer than its link. O(n).
    """
    links, lengths, edges, last = [-1], [0], [{}], 0
    distinct = 0
    for character in text:
        state = len(links)
        links.append(0), lengths.append(lengths[last] + 1), edges.append({})
        walk = last
        while walk >= 0 and character not in edges[walk]:
            edges[walk][character] = state
            walk = links[walk]
        if walk >= 0:
            target = edges[walk][character]
            if lengths[walk] + 1 != lengths[target]:
                clone = len(links)
                links.append(links[target]), lengths.append(lengths[walk] + 1), edges.append(dict(edges[target]))
                while walk >= 0 and edges[walk].get(character) == target:
                    edges[walk][character] = clone
                    walk = links[walk]
                links[target] = clone
                target = clone
            links[state] = target
        last = state
    distinct = sum(lengths[i] - lengths[links[i]] for i in range(1, len(links)))
    total = len(text) * (len(text) + 1) // 2
    return 1 - distinct / total if total else 0.0


def _by_value(one: str, other: str) -> bool:
    ours, theirs = elements(one), elements(other)
    if len(ours) != len(theirs):
        return False
    if len(ours) > 1 and (one[0], one[-1]) != (other[0], other[-1]):
        return False
    return all(a == b or same_value(a, b) for a, b in zip(ours, theirs, strict=True))
