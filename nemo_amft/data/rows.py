"""Checked values of a row: texts, answers and messages, or one line that says what is wrong with them."""

from __future__ import annotations

import json
import math
import numbers
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

from nemo_amft.data.golds import MARKS, join_golds

Row = Mapping[str, Any]
Message = Mapping[str, str]

ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
}
"""Roles as chat rows and ShareGPT's write them."""

ANSWER = "a non-empty text, a number or a list of them"


class RowError(ValueError):
    """One line: the key, what was found and what is expected. The caller adds file and row."""

    def __init__(self, key: str, found: Any, expected: str) -> None:
        super().__init__(f"{key}: found {show(found)}, expected {expected}")


class _Absent:
    def __repr__(self) -> str:
        return "nothing"


ABSENT = _Absent()


def blank(value: Any) -> bool:
    """Whether a column says nothing in a row: it is absent, null, an empty list or object, or a text of blanks."""
    if isinstance(value, str):
        return not value.strip()
    return value is ABSENT or value is None or (isinstance(value, list | Mapping) and not value)


def text(value: Any, key: str, may_be_empty: bool = False, expected: str = "a non-empty text") -> str:
    """`value`, a text that every tokenizer and file can take. Raises RowError."""
    if not isinstance(value, str) or not (may_be_empty or value.strip()):
        raise RowError(key, value, expected)
    if "\0" in value:
        raise RowError(key, _around(value, value.index("\0")), "a text without the character U+0000")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        # Half of a pair, as a text that was cut between UTF-16's two halves leaves behind.
        raise RowError(key, _around(value, error.start), "a text without lone surrogates") from None
    return value


def optional_text(row: Row, key: str) -> str:
    """The text at `key`, "" where the row has none."""
    return "" if row.get(key) is None else text(row[key], key)


def answer(value: Any, key: str) -> str:
    """An answer as an Example has it: a text, a number as it is written, or a list of them, any of which is right (golds.py).

    A list may come as its JSON (Skywork-OR1), which is told from an answer such as [1, 2] by its quotation marks. Raises
    RowError.
    """
    found = _json_list(value) if isinstance(value, str) else value
    if isinstance(found, list):
        if not found:
            raise RowError(key, value, ANSWER)
        return join_golds([_one_answer(gold, f"{key}[{i}]") for i, gold in enumerate(found)])
    return _one_answer(found, key)


def _one_answer(value: Any, key: str) -> str:
    if isinstance(value, numbers.Number) and not isinstance(value, bool | complex):
        return _number(value, key)
    found = text(value, key, expected=ANSWER)
    if MARKS & set(found):
        raise RowError(key, found, "an answer without the characters U+001E and U+001F")
    if found.strip().lower() == "nan":
        raise RowError(key, found, "an answer: this is what a missing number is written as")
    return found


def _number(value: Any, key: str) -> str:
    """Digits without an exponent: "1e-07" reads as a product in mathematics."""
    if isinstance(value, numbers.Integral):
        return str(int(value))
    if not (value.is_finite() if isinstance(value, Decimal) else math.isfinite(value)):
        raise RowError(key, value, "a finite number")
    if isinstance(value, Decimal):
        digits = f"{value:f}"
        # A column of decimals gives every one the zeros of its scale.
        return digits.rstrip("0").rstrip(".") if "." in digits else digits
    return f"{Decimal(repr(float(value))):f}"


def _json_list(value: str) -> Any:
    """The list that `value` is the JSON of, if its items are texts or objects, which no written answer has; else `value`."""
    if not (value.lstrip().startswith("[") and '"' in value):
        return value
    try:
        found = json.loads(value)
    except (ValueError, RecursionError):
        return value
    return found if isinstance(found, list) and all(isinstance(item, str | dict) for item in found) else value


def messages(value: Any, key: str, expected: str = "a non-empty list of messages") -> tuple[Message, ...]:
    """Messages as {"role", "content"}, whichever of chat rows' and ShareGPT's words they come in. Raises RowError."""
    if not isinstance(value, list) or not value:
        raise RowError(key, value, expected)
    return tuple(_message(message, f"{key}[{index}]") for index, message in enumerate(value))


def _message(message: Any, where: str) -> Message:
    if not isinstance(message, Mapping):
        raise RowError(where, message, "an object with 'role' and 'content'")
    speaker, said = ("from", "value") if "from" in message and "role" not in message else ("role", "content")
    name = message.get(speaker, ABSENT)
    role = ROLES.get(name) if isinstance(name, str) else None
    if role is None:
        raise RowError(f"{where}.{speaker}", name, "'system', 'user' or 'assistant'")
    content = _joined(message.get(said, ABSENT), f"{where}.{said}")
    return {"role": role, "content": text(content, f"{where}.{said}", may_be_empty=role == "system")}


def _joined(content: Any, key: str) -> Any:
    """Content that comes in parts, as one text."""
    if not isinstance(content, list):
        return content
    for index, part in enumerate(content):
        if not isinstance(part, Mapping) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            raise RowError(f"{key}[{index}]", part, "a part of type 'text': other content is not read")
    return "".join(part["text"] for part in content)


def ends_with(said: Sequence[Message], role: str, key: str) -> None:
    """Raises RowError unless the last message is `role`'s."""
    if said[-1]["role"] != role:
        raise RowError(f"{key}[{len(said) - 1}].role", said[-1]["role"], f"'{role}' in the last message")


def show(value: Any) -> str:
    """A value on one line, short. None is null, as in the files."""
    if value is None:
        return "null"
    try:
        found = repr(value)
    except (RecursionError, ValueError):  # nested too deep, or a number of too many digits
        found = f"a {type(value).__name__} that cannot be shown"
    return found if len(found) <= 60 else f"{found[:57]}..."


def plain(name: object) -> str:
    """A name from a file, as a message can hold it."""
    found = str(name)
    return found if found.isprintable() else repr(found)[1:-1]


def _around(value: str, index: int) -> str:
    return value[max(0, index - 20) : index + 5]
