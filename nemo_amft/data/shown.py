"""The demonstration that a row has, wherever sets keep one."""

from __future__ import annotations

import re
from typing import Any

from nemo_amft.data.rows import Message, Row, RowError, blank, ends_with, messages, text

Shown = str | tuple[str, ...]

COLUMNS = ("demonstration", "target", "completion", "response", "output", "generations", "generated_solution", "solution")
"""Where a demonstration is looked for, in this order."""

CHATS = ("messages", "conversations")
"""Conversations as chat rows and as ShareGPT write them. Beside a prompt they come after COLUMNS."""

VERIFIED = ("correctness_math_verify", "correctness_llama")
"""OpenR1-Math-220k's verdicts on its generations, the stricter one first."""

WHOLE = "is_reasoning_complete"
"""Whether its generations came to an end."""

ALIKE = re.compile(
    r"(^|_)(solution|response|completion|generation|demonstration|rationale|reasoning|cot|explanation)s?(_\d+)?$"
)
"""Names of columns that may hold a demonstration which nothing reads."""


def demonstration(row: Row, gold: str | None) -> Shown | None:
    """The first of COLUMNS and CHATS that says something; several turns as Example has them. A solution that is `gold` and
    nothing more shows nothing. Raises RowError."""
    for key in COLUMNS:
        if blank(row.get(key)) or (key == "solution" and row[key] == gold):
            continue
        found = _verified(row) if key == "generations" else _read(row[key], key)
        if found is not None:
            return found
    chat = next((key for key in CHATS if not blank(row.get(key))), None)
    if chat is None:
        return None
    said = conversation(row[chat], chat)[1]
    if len(said) != 1:
        raise RowError(chat, row[chat], "one question and its response, beside a prompt")
    return said[0]


def conversation(value: Any, key: str) -> tuple[tuple[Message, ...], tuple[str, ...]]:
    """The messages up to the assistant's first, and what follows: response, the user's next message, response, ... Raises
    RowError where the two do not take turns, or the last word is not the assistant's."""
    said = messages(value, key)
    ends_with(said, "assistant", key)
    first = next(index for index, message in enumerate(said) if message["role"] == "assistant")
    if not any(message["role"] == "user" for message in said[:first]):
        raise RowError(f"{key}[{first}].role", "assistant", "the user's message first")
    for index, message in enumerate(said[first:], start=first):
        wanted = "user" if (index - first) % 2 else "assistant"
        if message["role"] != wanted:
            raise RowError(f"{key}[{index}].role", message["role"], f"'{wanted}', in turns")
    return said[:first], tuple(message["content"] for message in said[first:])


def unread(row: Row) -> str | None:
    """A column that may hold a demonstration, in a row that has none where it is looked for."""
    if any(not blank(row.get(key)) for key in (*COLUMNS, *CHATS)):
        return None
    named = (key for key, value in row.items() if ALIKE.search(key.lower()) and isinstance(value, str | list))
    return next((key for key in named if not blank(row[key])), None)


def _read(value: Any, key: str) -> Shown:
    if isinstance(value, str):
        return text(value, key)
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return text(value[0], f"{key}[0]")  # of several, any will do
    said = messages(value, key, "a text, or messages that end with the assistant's")
    for index, message in enumerate(said):
        wanted = "user" if index % 2 else "assistant"
        if message["role"] != wanted:
            raise RowError(f"{key}[{index}].role", message["role"], f"'{wanted}'")
    ends_with(said, "assistant", key)
    return said[0]["content"] if len(said) == 1 else tuple(message["content"] for message in said)


def _verified(row: Row) -> str | None:
    """The first generation that is known to be right and whole; the first of all where nobody looked."""
    generations = row["generations"]
    if not isinstance(generations, list):
        raise RowError("generations", generations, "a list of texts")
    every = range(len(generations))
    verdicts = [_verdicts(row, key, len(generations)) for key in VERIFIED if not blank(row.get(key))]
    whole = _verdicts(row, WHOLE, len(generations)) if not blank(row.get(WHOLE)) else [True] * len(generations)
    right = [index for found in verdicts or [whole] for index in every if found[index] and whole[index]]
    return text(generations[right[0]], f"generations[{right[0]}]") if right else None


def _verdicts(row: Row, key: str, count: int) -> list[Any]:
    if not isinstance(row[key], list) or len(row[key]) != count:
        raise RowError(key, row[key], f"a list of {count} verdicts, one a generation")
    return row[key]
