"""The schemas of problem sets: each turns one row into a checked problem, or says in one line what is wrong with it."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from nemo_amft.data import choices, rows, shown
from nemo_amft.data.boxed import last_boxed
from nemo_amft.data.rows import ABSENT, Message, Row, RowError, blank
from nemo_amft.data.shown import Shown

PROMPTS = ("prompt", "problem", "question", "Question", "query", "instruction", "input")
"""Where a problem is looked for, in this order: a text or a list of messages."""

ANSWERS = ("answer", "final_answer", "expected_answer", "ground_truth")
"""Where a free answer is looked for after reward_model.ground_truth, in this order."""

CALCULATOR = re.compile(r"<<[^<>]*>>")
"""GSM8K's calculator annotations, such as <<48/2=24>>: made for a tool, not for a reader."""

LONGEST_ANSWER = 500
"""Characters of an answer beside a `question`: many sets keep the whole response in a column of that name."""


@dataclass(frozen=True)
class Problem:
    """What a row asks, whatever its schema."""

    messages: tuple[Message, ...]
    answer: str | None
    """None where the row has nothing to verify a response with."""
    answer_key: str
    """Where the answer stands, or ought to."""
    wanted: str = rows.ANSWER
    """What ought to stand there."""
    choice: bool = False
    """The answer is an option's letter."""


@dataclass(frozen=True)
class Schema:
    """One way of writing problems down."""

    says: str
    """Its columns, for whoever looks for the right ones."""
    fits: Callable[[Row], bool]
    """Whether it is a row's, by its columns."""
    problem: Callable[[Row], Problem]
    """Raises RowError."""
    demonstration: Callable[[Row, Problem], Shown | None]
    """The expert's response, of one turn or several (types.Example). Raises RowError."""


def schema_of(row: Row) -> Schema | None:
    """The schema of a set that begins with `row`: by the columns that say something in it, else by all; None if none fits."""
    said = {key: value for key, value in row.items() if not blank(value)}
    return next((schema for seen in (said, row) for schema in SCHEMAS if not _preferences(row) and schema.fits(seen)), None)


def refusal(row: Row) -> str:
    """What to say of a set that begins with `row` where no schema fits."""
    pairs = " (preference pairs, which nothing here learns from)" if _preferences(row) else ""
    columns = ", ".join(sorted(map(rows.plain, row))) or "none"
    return f"columns: found {columns}{pairs}, expected {'; or '.join(schema.says for schema in (FREE, CHAT, WORKED, CHOICE))}"


def source_of(row: Row) -> str:
    """The set that a row says it is from; "" where it says nothing."""
    return rows.optional_text(row, "data_source")


def category_of(row: Row) -> str:
    """The field of knowledge that a row says it is of; "" where it says nothing."""
    named = (row.get(key) for key in ("category", "subject", "High-level domain"))
    return next((rows.text(value, "category") for value in named if isinstance(value, str) and value.strip()), "")


def refuse_left_out(row: Row, problem: Problem, demonstration: Shown | None, imitated: bool) -> None:
    """Raises RowError for a column that seems to hold options or, where those are `imitated`, demonstrations, and was not
    read."""
    for key in _alike(tuple(row)):
        if not (problem.choice or blank(row[key]) or choices.offered(problem.messages[-1]["content"], row[key])):
            raise RowError(key, row[key], f"no options beside a free answer, or a question with options: {CHOICE.says}")
    if imitated and demonstration is None and (key := shown.unread(row)) is not None:
        raise RowError(key, row[key], f"a demonstration in one of the columns {_names(shown.COLUMNS)}: nothing reads this one")


# ---- the columns of a row


def _preferences(row: Row) -> bool:
    return {"chosen", "rejected"} <= row.keys()


def _prompt_key(row: Row) -> str | None:
    said = (key for key in PROMPTS if not blank(row.get(key)))
    return next(said, next((key for key in PROMPTS if key in row), None))


def _prompt(row: Row) -> tuple[Message, ...]:
    key = _prompt_key(row) or PROMPTS[0]
    value = row.get(key, ABSENT)
    if isinstance(value, str):
        said = rows.text(value, key)
        if key == "instruction" and not blank(row.get("input")):
            said = f"{said}\n\n{rows.text(row['input'], 'input')}"
        return _with_system(row, ({"role": "user", "content": said},))
    said = rows.messages(value, key, "text or a non-empty list of messages")
    rows.ends_with(said, "user", key)
    return _with_system(row, said)


def _with_system(row: Row, said: tuple[Message, ...]) -> tuple[Message, ...]:
    """With the column `system` in front, as ShareGPT's sets have it."""
    if blank(row.get("system")) or any(message["role"] == "system" for message in said):
        return said
    return ({"role": "system", "content": rows.text(row["system"], "system")}, *said)


def _answer(row: Row) -> tuple[str | None, str]:
    """The free answer, None for none, and its column. A row that has no column for it may have it in its solution's last box
    (MATH)."""
    if "reward_model" in row:
        model, key = row["reward_model"], "reward_model.ground_truth"
        if not isinstance(model, dict | None):
            raise RowError("reward_model", model, "an object with 'ground_truth'")
        value = (model or {}).get("ground_truth")
    else:
        said = (key for key in ANSWERS if not blank(row.get(key)))
        key = next(said, next((key for key in ANSWERS if key in row), ANSWERS[0]))
        if key not in row and isinstance(solution := row.get("solution"), str) and (boxed := last_boxed(solution)):
            return rows.answer(boxed, "solution"), "solution"
        value = row.get(key)
    return (None if blank(value) else rows.answer(value, key)), key


def found_at(row: Row, key: str) -> Any:
    """What stands at a column, or at a column and a key of its object."""
    value: Any = row
    for name in key.split("."):
        value = value.get(name, ABSENT) if isinstance(value, dict) else value
    return value


@functools.lru_cache(maxsize=64)
def _alike(columns: tuple[str, ...]) -> tuple[str, ...]:
    lettered = {"A", "B"} <= set(columns)
    return tuple(key for key in columns if choices.ALIKE.fullmatch(str(key).lower()) or (lettered and key in "AB"))


# ---- the schemas


def _is_choice(row: Row) -> bool:
    key = _prompt_key(row)
    there = {*choices.OPTIONS, choices.GPQA[1]} & row.keys() or {"A", "B"} <= row.keys()
    return key is not None and isinstance(row[key], str) and "reward_model" not in row and bool(there)


def _choice(row: Row) -> Problem:
    found = choices.options_of(row)
    if found is None:
        raise RowError(choices.OPTIONS[0], row.get(choices.OPTIONS[0], ABSENT), "a list of options")
    options, labels = found
    gold, answer_key = choices.gold_of(row, options, labels)
    key = _prompt_key(row) or PROMPTS[0]
    question = rows.text(row.get(key, ABSENT), key)
    if choices.labelled(question, options, labels):
        letter = None if gold is None else labels[gold]
    else:
        # A demonstration speaks of the letters that the row gives the options.
        as_given = any(not blank(row.get(name)) for name in shown.COLUMNS)
        question, letter = choices.lettered(question, options, gold, as_given)
    prompt = _with_system(row, ({"role": "user", "content": question},))
    return Problem(prompt, letter, answer_key, "the right option's letter, or its index from 0", choice=True)


def _is_worked(row: Row) -> bool:
    return "question" in row and "####" in str(row.get("answer"))


def _worked(row: Row) -> Problem:
    worked = rows.text(row.get("answer", ABSENT), "answer")
    _, mark, answer = worked.rpartition("####")
    answer = answer.strip().replace(",", "")
    if not mark or not answer:
        raise RowError("answer", worked[-40:], "steps that end with '#### N'")
    return Problem(_prompt(row), rows.answer(answer, "answer"), "answer")


def _steps(row: Row, problem: Problem) -> Shown:
    """The steps without calculator annotations, then the answer in a box, where Math-Verify looks first."""
    steps = CALCULATOR.sub("", row["answer"].rpartition("####")[0]).strip()
    return shown.demonstration(row, problem.answer) or f"{steps}\nThe answer is \\boxed{{{problem.answer}}}."


def _is_free(row: Row) -> bool:
    return _prompt_key(row) is not None and any(key in row for key in ("reward_model", *ANSWERS, *shown.COLUMNS))


def _free(row: Row) -> Problem:
    answer, key = _answer(row)
    prompt = _prompt(row)
    if _is_response(row, answer, key):
        return Problem(prompt, None, key, "a final answer alone, or steps that end with '#### N' from the first row on")
    options = [row[name] for name in _alike(tuple(row)) if not blank(row[name])]
    offered = options and all(choices.offered(prompt[-1]["content"], value) for value in options)
    return Problem(prompt, answer, key, choice=bool(offered) and answer is not None and answer.strip() in [*choices.LETTERS])


def _is_response(row: Row, answer: str | None, key: str) -> bool:
    """Whether the answer beside a `question` is a whole response."""
    if answer is None or (key, _prompt_key(row)) != ("answer", "question"):
        return False
    return len(answer) > LONGEST_ANSWER or "\n" in answer.strip() or "####" in answer


def _free_demonstration(row: Row, problem: Problem) -> Shown | None:
    response = row["answer"] if problem.answer is None and isinstance(row.get("answer"), str) else None
    return shown.demonstration(row, problem.answer) or (None if blank(response) else response)


def _is_chat(row: Row) -> bool:
    return any(key in row for key in shown.CHATS)


def _chat(row: Row) -> Problem:
    """With an answer, all but the last response is the prompt, as it is the last that the answer is for."""
    answer, key = _answer(row)
    if answer is None:
        return Problem(_with_system(row, shown.conversation(row.get(_chat_key(row), ABSENT), _chat_key(row))[0]), None, key)
    said = _said(row)
    asked = said[:-1] if said[-1]["role"] == "assistant" else said
    rows.ends_with(asked or said, "user", _chat_key(row))
    return Problem(_with_system(row, asked), answer, key)


def _chat_demonstration(row: Row, problem: Problem) -> Shown | None:
    if problem.answer is None:
        turns = shown.conversation(row[_chat_key(row)], _chat_key(row))[1]
        return turns if len(turns) > 1 else turns[0]
    last = _said(row)[-1]
    return last["content"] if last["role"] == "assistant" else None


def _chat_key(row: Row) -> str:
    said = (key for key in shown.CHATS if not blank(row.get(key)))
    return next(said, next((key for key in shown.CHATS if key in row), shown.CHATS[0]))


def _said(row: Row) -> tuple[Message, ...]:
    return rows.messages(row.get(_chat_key(row), ABSENT), _chat_key(row))


def _shown(row: Row, problem: Problem) -> Shown | None:
    return shown.demonstration(row, problem.answer)


def _names(names: tuple[str, ...]) -> str:
    return f"{', '.join(names[:-1])} or {names[-1]}"


CHOICE = Schema(
    f"question (or another of the prompts), {_names(choices.OPTIONS)} (a list, or columns A, B, ...) and "
    f"{_names(choices.GOLDS)} (a letter, or an index from 0), or GPQA's columns",
    _is_choice,
    _choice,
    _shown,
)
"""MMLU, MMLU-Pro, ARC, GPQA and what is written as they are."""

WORKED = Schema("question and answer, steps that end with '#### N'", _is_worked, _worked, _steps)
"""openai/gsm8k."""

FREE = Schema(
    f"{_names(PROMPTS)} with {_names(ANSWERS)}, reward_model.ground_truth, a solution with a box, or a demonstration alone "
    f"({_names(shown.COLUMNS)})",
    _is_free,
    _free,
    _free_demonstration,
)
"""A problem with a free answer, a demonstration or both: Elliott/Openr1-Math-46k-8192, verl's sets (DAPO-17k, Skywork-OR1),
open-r1/OpenR1-Math-220k, MATH, MATH-500, AIME, OlympiadBench, TRL's prompt and completion, and rows of one's own."""

CHAT = Schema(
    f"{_names(shown.CHATS)} (a conversation that ends with the assistant's message)", _is_chat, _chat, _chat_demonstration
)
"""Chat rows and ShareGPT's."""

SCHEMAS = (CHOICE, WORKED, FREE, CHAT)
"""Tried in this order."""
