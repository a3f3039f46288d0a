"""What the agent may do, and how its answer is read. Runs in reward workers, so it imports nothing heavy."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Literal

from nemo_amft.tasks.virl.headings import COMPASS, TURNS

Space = Literal["absolute", "relative"]

FORWARD = "forward()"
STOP = "stop()"

WORDS: dict[Space, tuple[str, ...]] = {"absolute": COMPASS, "relative": TURNS}
"""What turn_direction(x) takes in each action space."""

MAX_CHARACTERS = 8192
"""A right answer has some 200; a longer one than this is not read at all."""

KEYS = ("current observation", "current instruction", "action")

INTERSECTION = "You observe an intersection"

_CALL = re.compile(r"\s*(forward|stop|turn_direction)\s*\(([^()]*)\)\s*")
_TEXT = r'"(?:[^"\\\x00-\x1f]|\\.)*"'
_PAIR = re.compile(rf"\s*({_TEXT})\s*:\s*({_TEXT})\s*")
_FENCE = re.compile(r"```(?:json)?\s*\n(.*)\n\s*```", re.DOTALL)

COMPACT: dict[str, str] = (
    {FORWARD: "f", STOP: "s"}
    | {
        f"turn_direction({word})": code
        for word, code in zip(COMPASS, ("N", "NE", "E", "SE", "S", "SW", "W", "NW"), strict=True)
    }
    | {f"turn_direction({word})": code for word, code in zip(TURNS, ("L", "R", "l", "r"), strict=True)}
)
"""The short form of every action, of both spaces."""

_LONG = {code: action for action, code in COMPACT.items()}
_COMPACT_ANSWER = re.compile(r"([+-])([A-Za-z]{1,2})")


class AnswerError(ValueError):
    """Why an answer cannot be read, in a few words."""


@dataclass(frozen=True)
class Answer:
    """What the agent says. `action` is written as in `turn`, or None if it is none of the action space."""

    action: str | None
    intersection: bool
    """It says that it is at an intersection."""


def turn(word: str) -> str:
    """The action that turns towards `word`, a compass direction or a relative one."""
    return f"turn_direction({word})"


def read_action(text: str, space: Space) -> str | None:
    """`text` as an action of `space`, spaces and quotes within it put right; None if it is none."""
    found = _CALL.fullmatch(text)
    if found is None:
        return None
    name, argument = found[1], " ".join(found[2].split()).strip("'\"").strip()
    if name == "turn_direction":
        return turn(argument) if argument in WORDS[space] else None
    return f"{name}()" if not argument else None


def read_full(text: str, space: Space) -> Answer:
    """Read {"current observation": .., "current instruction": .., "action": ..}; raises AnswerError.

    The answer is that one object, in a code fence or not, with these keys, once each, in any order, and texts as values. A
    comma after the last one is let pass, as the original's own demonstrations have it. What a text says is data: an action
    named in the observation, or a second object beside the first, is never taken for the answer.
    """
    if len(text) > MAX_CHARACTERS:
        raise AnswerError(f"it has more than {MAX_CHARACTERS} characters")
    body = text.strip()
    fenced = _FENCE.fullmatch(body)
    values = _read_object(fenced[1].strip() if fenced else body)
    missing = [key for key in KEYS if key not in values]
    if missing:
        raise AnswerError(f"the key '{missing[0]}' is missing")
    # Saying anything about an intersection counts as having seen one: prompts ask to name it only where it is.
    return Answer(read_action(values["action"], space), "intersection" in values["current observation"].lower())


def _read_object(body: str) -> dict[str, str]:
    if not (body.startswith("{") and body.endswith("}")):
        raise AnswerError("it is not one JSON object")
    values: dict[str, str] = {}
    at, end = 1, len(body) - 1
    while body[at:end].strip():
        pair = _PAIR.match(body, at, end)
        if pair is None:
            raise AnswerError("it is not one JSON object of texts")
        try:
            key, value = json.loads(pair[1]), json.loads(pair[2])
        except ValueError:
            raise AnswerError("a text in it has a bad escape") from None
        if key not in KEYS:
            raise AnswerError("it has a key that was not asked for")
        if key in values:
            raise AnswerError(f"the key '{key}' is given twice")
        values[key] = value
        at = pair.end()
        if at < end:
            if body[at] != ",":
                raise AnswerError("it is not one JSON object of texts")
            at += 1
    return values


def read_compact(text: str, space: Space) -> Answer:
    """Read "+" or "-" (at an intersection or not) and an action's short form, such as "+NE"; raises AnswerError."""
    found = _COMPACT_ANSWER.fullmatch(text.strip())
    if found is None:
        raise AnswerError("it is not + or - and an action")
    return Answer(read_action(_LONG.get(found[2], ""), space), found[1] == "+")
