"""The schemas of problem sets: each turns one row into a checked problem, or says in one line what is wrong with it."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nemo_amft.data.golds import MARKS, join_golds

PROMPT_ROLES = ("system", "user", "assistant")

CALCULATOR = re.compile(r"<<[^<>]*>>")
"""GSM8K's calculator annotations, such as <<48/2=24>>: made for a tool, not for a reader."""

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"

OPTION_SEED = 42
"""Seeds the order of options, together with the question: the same order in every run, whichever rows are read."""

CHOICE_INSTRUCTION = "Put the letter of the right option in \\boxed{}."
"""Ends a prompt that is made from options. A row that brings its own prompt is left as it is."""


class RowError(ValueError):
    """One line: the key, what was found and what is expected. The caller adds file and row."""

    def __init__(self, key: str, found: Any, expected: str) -> None:
        super().__init__(f"{key}: found {_show(found)}, expected {expected}")


@dataclass(frozen=True)
class Problem:
    """What a row says, whatever its schema."""

    messages: tuple[Mapping[str, str], ...]
    answer: str | None
    """None where the row has nothing to verify a response with."""
    demonstration: str | tuple[str, ...] | None
    source: str
    choice: bool = False
    """The answer is an option's letter."""
    category: str = ""


Schema = Callable[[Mapping[str, Any]], Problem]


class _Absent:
    def __repr__(self) -> str:
        return "nothing"


ABSENT = _Absent()


def detect_schema(row: Mapping[str, Any]) -> Schema | None:
    """The schema whose columns `row` has, or None."""
    for schema, columns in COLUMNS.items():
        if columns <= row.keys():
            return schema
    return None


def openr1(row: Mapping[str, Any]) -> Problem:
    """Elliott/Openr1-Math-46k-8192: prompt and target are lists of messages, reward_model.ground_truth is the answer."""
    reward_model = row.get("reward_model", ABSENT)
    if not isinstance(reward_model, Mapping):
        raise RowError("reward_model", reward_model, "an object with 'ground_truth'")
    return Problem(
        messages=_messages(row, "prompt"),
        answer=_answer(reward_model.get("ground_truth", ABSENT), "reward_model.ground_truth"),
        demonstration=_target(row.get("target")),
        source=_optional_text(row, "data_source") or "",
    )


def generic(row: Mapping[str, Any]) -> Problem:
    """prompt (text, or a list of messages), answer and, if there is one, demonstration (text)."""
    prompt = row.get("prompt", ABSENT)
    if isinstance(prompt, str):
        messages: tuple[Mapping[str, str], ...] = ({"role": "user", "content": _text(prompt, "prompt")},)
    else:
        messages = _messages(row, "prompt", "text or a non-empty list of messages")
    return Problem(messages, _answer(row.get("answer", ABSENT), "answer"), _optional_text(row, "demonstration"), "")


def gsm8k(row: Mapping[str, Any]) -> Problem:
    """openai/gsm8k: question, and an answer that holds the steps and ends with "#### N".

    The demonstration is the steps without calculator annotations, then the answer in a box, where Math-Verify looks first.
    """
    question = _text(row.get("question", ABSENT), "question")
    worked = _text(row.get("answer", ABSENT), "answer")
    steps, mark, answer = worked.rpartition("####")
    answer = answer.strip().replace(",", "")
    if not mark or not answer:
        raise RowError("answer", worked[-40:], "steps that end with '#### N'")
    steps = CALCULATOR.sub("", steps).strip()
    return Problem(({"role": "user", "content": question},), answer, f"{steps}\nThe answer is \\boxed{{{answer}}}.", "")


def chat(row: Mapping[str, Any]) -> Problem:
    """messages: a conversation that ends with the assistant's message. What comes before the assistant's first message is the
    prompt, the rest is the demonstration. There is no answer."""
    said = _messages(row, "messages", last="assistant")
    first = next(index for index, message in enumerate(said) if message["role"] == "assistant")
    turns = tuple(message["content"] for message in said[first:])
    return Problem(said[:first], None, turns if len(turns) > 1 else turns[0], "")


def problem(row: Mapping[str, Any]) -> Problem:
    """problem and answer, as in HuggingFaceH4/MATH-500, AI-MO/aimo-validation-amc and the hub's AIME sets."""
    text = _text(row.get("problem", ABSENT), "problem")
    return Problem(({"role": "user", "content": text},), _answer(row.get("answer", ABSENT), "answer"), None, "")


def plain(row: Mapping[str, Any]) -> Problem:
    """question, and an answer without steps, as in math-ai/minervamath. Its columns are GSM8K's, so it has to be asked for."""
    question = _text(row.get("question", ABSENT), "question")
    return Problem(({"role": "user", "content": question},), _answer(row.get("answer", ABSENT), "answer"), None, "")


def olympiad(row: Mapping[str, Any]) -> Problem:
    """OlympiadBench: question, and final_answer, a list of texts any of which is right."""
    golds = row.get("final_answer", ABSENT)
    if not isinstance(golds, list) or not golds:
        raise RowError("final_answer", golds, "a non-empty list of answers")
    answer = join_golds([_answer(gold, f"final_answer[{i}]") for i, gold in enumerate(golds)])
    return Problem(({"role": "user", "content": _text(row.get("question", ABSENT), "question")},), answer, None, "")


def mmlu_pro(row: Mapping[str, Any]) -> Problem:
    """TIGER-Lab/MMLU-Pro: question, options (a list), answer (a letter) and, if there is one, category."""
    options = _options(row.get("options", ABSENT), "options")
    answer = _answer(row.get("answer", ABSENT), "answer").strip().upper()
    letters = LETTERS[: len(options)]
    if len(answer) != 1 or answer not in letters:
        raise RowError("answer", answer, f"a letter from A to {letters[-1]}")
    return _choice(row, "question", options, letters.index(answer), _optional_text(row, "category") or "")


def arc(row: Mapping[str, Any]) -> Problem:
    """allenai/ai2_arc: question, choices {text, label} and answerKey, one of the labels (letters, or digits in some rows)."""
    choices = row.get("choices", ABSENT)
    if not isinstance(choices, Mapping):
        raise RowError("choices", choices, "an object with 'text' and 'label'")
    options = _options(choices.get("text", ABSENT), "choices.text")
    labels, key = choices.get("label", ABSENT), row.get("answerKey", ABSENT)
    if not isinstance(labels, list) or len(labels) != len(options):
        raise RowError("choices.label", labels, f"a list of {len(options)} labels")
    if key not in labels:
        raise RowError("answerKey", key, f"one of {', '.join(map(str, labels))}")
    return _choice(row, "question", options, labels.index(key))


def gpqa(row: Mapping[str, Any]) -> Problem:
    """Idavidrein/gpqa: Question, Correct Answer, and Incorrect Answer 1 to 3."""
    keys = ("Correct Answer", "Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3")
    options = [_text(row.get(key, ABSENT), key) for key in keys]
    return _choice(row, "Question", options, 0, _optional_text(row, "High-level domain") or "")


COLUMNS: dict[Schema, set[str]] = {
    openr1: {"prompt", "reward_model"},
    generic: {"prompt", "answer"},
    mmlu_pro: {"question", "options", "answer"},
    arc: {"question", "choices", "answerKey"},
    gpqa: {"Question", "Correct Answer"},
    olympiad: {"question", "final_answer"},
    gsm8k: {"question", "answer"},
    problem: {"problem", "answer"},
    chat: {"messages"},
}
"""What tells a schema, tried in this order."""


def _choice(row: Mapping[str, Any], key: str, options: Sequence[str], gold: int, category: str = "") -> Problem:
    """A question with lettered options, in an order drawn from the question alone."""
    question = _text(row.get(key, ABSENT), key).strip()
    # By a hash and not by `random`, whose shuffling another version of Python may do otherwise.
    order = sorted(range(len(options)), key=lambda i: hashlib.sha256(f"{OPTION_SEED}/{i}/{question}".encode()).digest())
    lines = "\n".join(f"{LETTERS[place]}) {options[index].strip()}" for place, index in enumerate(order))
    text = f"{question}\n\n{lines}\n\n{CHOICE_INSTRUCTION}"
    return Problem(({"role": "user", "content": text},), LETTERS[order.index(gold)], None, "", True, category)


def _options(value: Any, key: str) -> list[str]:
    if not isinstance(value, list) or not 2 <= len(value) <= len(LETTERS):
        raise RowError(key, value, f"a list of 2 to {len(LETTERS)} options")
    return [_text(option, f"{key}[{i}]") for i, option in enumerate(value)]


def _messages(
    row: Mapping[str, Any], key: str, expected: str = "a non-empty list of messages", last: str = "user"
) -> tuple[Mapping[str, str], ...]:
    value = row.get(key, ABSENT)
    if not isinstance(value, list) or not value:
        raise RowError(key, value, expected)
    messages = []
    for index, message in enumerate(value):
        where = f"{key}[{index}]"
        if not isinstance(message, Mapping):
            raise RowError(where, message, "an object with 'role' and 'content'")
        role = message.get("role", ABSENT)
        if role not in PROMPT_ROLES:
            raise RowError(f"{where}.role", role, "'system', 'user' or 'assistant'")
        content = _text(message.get("content", ABSENT), f"{where}.content", may_be_empty=role == "system")
        messages.append({"role": role, "content": content})
    if messages[-1]["role"] != last:
        raise RowError(f"{key}[{len(messages) - 1}].role", messages[-1]["role"], f"{last!r} in the last message")
    return tuple(messages)


def _target(target: Any) -> str | None:
    """The demonstration: a list of one assistant message. Absent or null where a set has none."""
    if target is None:
        return None
    if not isinstance(target, list) or len(target) != 1 or not isinstance(target[0], Mapping):
        raise RowError("target", target, "a list of one assistant message")
    if target[0].get("role", ABSENT) != "assistant":
        raise RowError("target[0].role", target[0].get("role", ABSENT), "'assistant'")
    return _text(target[0].get("content", ABSENT), "target[0].content")


def _answer(value: Any, key: str) -> str:
    """Numbers are taken as they print, as some sets store integer answers as such."""
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return str(value)
    answer = _text(value, key, expected="a non-empty text or a number")
    if MARKS & set(answer):
        raise RowError(key, answer, "an answer without the characters U+001E and U+001F")
    return answer


def _optional_text(row: Mapping[str, Any], key: str) -> str | None:
    return None if row.get(key) is None else _text(row[key], key)


def _text(value: Any, key: str, may_be_empty: bool = False, expected: str = "a non-empty text") -> str:
    if not isinstance(value, str) or not (value.strip() or may_be_empty):
        raise RowError(key, value, expected)
    return value


def _show(value: Any) -> str:
    """A value on one line, short. None is null, as in the files."""
    if value is None:
        return "null"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
