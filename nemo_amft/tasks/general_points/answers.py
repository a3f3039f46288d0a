"""What a response answers: the JSON object, or the text after the last '#', in whatever surrounds it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from nemo_amft.tasks.general_points.cards import LABELS

MAX_TAIL = 2000
"""Characters from a response's end in which its answer is looked for. An answer takes some 120; an older one does not count."""

MARK = "#"
"""What the formula of the compact style follows."""


class AnswerError(ValueError):
    """The response holds no answer; the message says what is missing or wrong."""


@dataclass(frozen=True)
class Answer:
    formula: str
    cards: tuple[str, ...] | None
    """Labels as they were read, in LABELS' spelling; None where they were not given or are no cards."""


class _Object(dict[str, Any]):
    """A JSON object that remembers whether a key came twice: which of the two counts would be anyone's guess."""

    twice: str | None = None


def _object(pairs: list[tuple[str, Any]]) -> _Object:
    found = _Object()
    for key, value in pairs:
        if key in found:
            found.twice = key
        found[key] = value
    return found


@dataclass(frozen=True)
class _Number:
    """Kept as written: none is computed with, so none can be too long or not finite."""

    text: str


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_int=_Number, parse_float=_Number, parse_constant=_Number)


def read_json(response: str) -> Answer:
    """The last JSON object of `response` that stands in no other. Raises AnswerError.

    Only the last counts, so that a response is one attempt however many objects it lists. "formula" must be text; "cards" is
    judged by who needs it, and "number" by nobody, as it says nothing beyond the formula.
    """
    found = _last_object(response[-MAX_TAIL:])
    if found is None:
        raise AnswerError('no JSON object with "cards", "number" and "formula"')
    if found.twice is not None:
        raise AnswerError(f"the key {found.twice[:20]!a} comes twice in the JSON object")
    if "formula" not in found:
        raise AnswerError('the JSON object has no key "formula"')
    if not isinstance(found["formula"], str):
        raise AnswerError('"formula" is no text')
    return Answer(found["formula"], _labels(found.get("cards")))


def read_compact(response: str) -> Answer:
    """The formula after the last '#'. Raises AnswerError."""
    _, mark, formula = response[-MAX_TAIL:].rpartition(MARK)
    if not mark:
        raise AnswerError(f"no formula after {MARK!r}")
    return Answer(formula.strip(" \n"), None)


def _last_object(text: str) -> _Object | None:
    last, start = None, text.find("{")
    while start >= 0:
        try:
            value, end = _DECODER.raw_decode(text, start)
        except (ValueError, RecursionError):
            # Not an object, or one nested without end: whatever stands inside it is looked at on its own.
            end = start + 1
        else:
            last = value
        start = text.find("{", end)
    return last


def _labels(value: Any) -> tuple[str, ...] | None:
    if not isinstance(value, list) or not all(isinstance(item, str | _Number) for item in value):
        return None
    texts = (item.text if isinstance(item, _Number) else item for item in value)
    labels = tuple(text.strip().upper() for text in texts)
    return labels if all(label in LABELS for label in labels) else None
