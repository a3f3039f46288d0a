"""Questions with options to choose from: one prompt with lettered options, and the right one's letter."""

from __future__ import annotations

import hashlib
import numbers
import re
from collections.abc import Mapping, Sequence
from typing import Any

from nemo_amft.data.rows import ABSENT, Row, RowError, blank, plain, text

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"

OPTIONS = ("options", "choices")
"""Columns of options: a list of texts (MMLU, MMLU-Pro), {text, label} (ARC), or letter -> text."""

GOLDS = ("answerKey", "answer", "answer_index", "answer_idx", "correct", "label", "gold")
"""Columns of the right one: a letter or label, or a number, which counts from 0."""

GPQA = ("Correct Answer", "Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3")

ALIKE = re.compile(r"options?|choices?|distractors?_?\d?|(in)?correct[_ ]answers?[_ ]?\d?|endings|option_?[a-e1-5]|answerkey")
"""Names, in small letters, of columns that may hold options."""

SEED = 42
"""Seeds the order of options, together with the question: the same order in every run, whichever rows are read."""

INSTRUCTION = "Put the letter of the right option in \\boxed{}."
"""Ends a prompt that is made from options. A row that brings its own prompt is left as it is."""


def lettered(question: str, options: Sequence[str], gold: int | None, as_given: bool) -> tuple[str, str | None]:
    """The prompt and the letter of option number `gold`, in an order drawn from the question alone, or `as_given`."""
    question = question.strip()
    order = list(range(len(options)))
    if not as_given:
        # By a hash and not by `random`, whose shuffling another version of Python may do otherwise.
        order.sort(key=lambda i: hashlib.sha256(f"{SEED}/{i}/{question}".encode()).digest())
    lines = "\n".join(f"{LETTERS[place]}) {options[index].strip()}" for place, index in enumerate(order))
    return f"{question}\n\n{lines}\n\n{INSTRUCTION}", None if gold is None else LETTERS[order.index(gold)]


def options_of(row: Row) -> tuple[list[str], list[str]] | None:
    """The options and their labels, by which the row may name the right one; None where it has none. Raises RowError."""
    if GPQA[0] in row and GPQA[1] in row:
        return [text(row.get(key, ABSENT), key) for key in GPQA], []
    if (key := next((key for key in OPTIONS if not blank(row.get(key))), None)) is not None:
        return _listed(row[key], key)
    if not (blank(row.get("A")) or blank(row.get("B"))):
        letters = [letter for letter in LETTERS if not blank(row.get(letter))]
        return [text(row[letter], letter) for letter in letters], letters
    return None


def labelled(prompt: str, options: Sequence[str], labels: Sequence[str]) -> bool:
    """Whether `prompt` has every option already, behind its label."""
    if not labels:
        return False
    marks = (rf"(?<!\w){re.escape(a)}\s*[).:\]]\s*{re.escape(b.strip())}(?!\w)" for a, b in zip(labels, options, strict=True))
    return all(re.search(mark, prompt) for mark in marks)


def offered(prompt: str, value: Any) -> bool:
    """Whether `prompt` lists the options in the column's `value` already, each at the end of a line below the first."""
    if isinstance(value, Mapping) and "text" in value:
        value = value["text"]
    leaves = [value] if not isinstance(value, list | Mapping) else list(value.values() if isinstance(value, Mapping) else value)
    lines = [line.rstrip() for line in prompt.splitlines()[1:]]
    return all(isinstance(leaf, str) and any(line.endswith(leaf.rstrip()) for line in lines) for leaf in leaves)


def gold_of(row: Row, options: Sequence[str], labels: Sequence[str]) -> tuple[int | None, str]:
    """The number of the right option, and the column that says so; None where none does. Raises RowError."""
    if GPQA[0] in row:
        return 0, GPQA[0]
    key = next((key for key in GOLDS if not blank(row.get(key))), None)
    if key is None:
        return None, next((key for key in GOLDS if key in row), GOLDS[0])
    value = row[key]
    for name in (str(value).strip(), str(value).strip().upper()):
        if name in labels:
            return labels.index(name), key
    if _is_number(value):
        if value not in range(len(options)):
            raise RowError(key, value, f"a number from 0 to {len(options) - 1}, the right option's")
        return int(value), key
    if options.count(value) == 1:
        return options.index(value), key
    lettered = list(labels) == list(LETTERS[: len(options)])
    letters = f"a letter from A to {labels[-1]}, or a number, the index from 0"
    raise RowError(key, value, letters if lettered else f"one of {', '.join(map(plain, labels))}")


def _listed(value: Any, key: str) -> tuple[list[str], list[str]]:
    labels: Any = None
    if isinstance(value, Mapping) and "text" in value:
        labels, value, key = value.get("label", ABSENT), value["text"], f"{key}.text"
        if not isinstance(labels, list) or not isinstance(value, list) or len(labels) != len(value):
            raise RowError(key.replace(".text", ".label"), labels, "a label for each of the options, in 'text'")
    elif isinstance(value, Mapping):  # columns of one struct are null where another row has more options
        named = {name: option for name, option in value.items() if option is not None}
        labels, value = list(named), list(named.values())
    elif isinstance(value, list) and value and all(isinstance(item, Mapping) for item in value):
        labels = [next((item[name] for name in ("label", "key", "letter") if name in item), ABSENT) for item in value]
        value = [item.get("text", item.get("content", ABSENT)) for item in value]
    if not isinstance(value, list) or not 2 <= len(value) <= len(LETTERS):
        raise RowError(key, value, f"a list of 2 to {len(LETTERS)} options")
    options = [text(str(item) if _is_number(item) else item, f"{key}[{i}]") for i, item in enumerate(value)]
    return _without_letters(options), [str(label) for label in labels] if labels is not None else list(LETTERS[: len(options)])


def _without_letters(options: list[str]) -> list[str]:
    """Options that bring their own letters ("A) 21", "B. 22") without them: they are lettered anew."""
    marks = [re.match(rf"\s*(?:\(?{LETTERS[i]}\)\s*|{LETTERS[i]}[.:]\s+)(?=\S)", option) for i, option in enumerate(options)]
    if not all(marks):
        return options
    return [option[mark.end() :] for option, mark in zip(options, marks, strict=True) if mark]


def _is_number(value: Any) -> bool:
    return isinstance(value, numbers.Number) and not isinstance(value, bool | complex)
