"""Who opens a response's thoughts, and demonstrations that fit: the chat template, the response itself, or nobody.

Templates of models that always think end a prompt with "<think>" (DeepSeek-R1's distillations). Others leave it to the response
(ChatML, Qwen3), and a template that is told not to think closes the thoughts before the response begins (Qwen3 with
enable_thinking=false).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from nemo_amft.data.chat import ChatTemplate
from nemo_amft.types import Example, UserError

logger = logging.getLogger(__name__)

OPEN, CLOSE = "<think>", "</think>"


@dataclass(frozen=True)
class Thoughts:
    """How a prompt ends."""

    state: Literal["open", "closed", "none"]
    """open: after "<think>". closed: after "</think>". none: after neither."""
    space: str = ""
    """What the template puts between "<think>" and the response."""


def thoughts_after(prompt: str) -> Thoughts:
    """How `prompt`, the template's text up to the response, ends."""
    text = prompt.rstrip()
    if text.endswith(CLOSE):
        return Thoughts("closed")
    return Thoughts("open", prompt[len(text) :]) if text.endswith(OPEN) else Thoughts("none")


def thoughts_of(chat: ChatTemplate, examples: Sequence[Example]) -> Thoughts:
    """How the template ends the prompts of `examples`, all of which it ends alike."""
    return thoughts_after(chat.prompt_text(examples[0].messages)) if examples else Thoughts("none")


def check_thinking(thinking: bool | None, thoughts: Thoughts) -> None:
    """Compare task.thinking (None: the task has no such key) with the template. Raises UserError where right responses would be
    graded as wrong; where that depends on what the model has learnt, it is logged as a warning."""
    if thinking and thoughts.state == "closed":
        raise UserError(
            f"task.thinking: found true, expected false, as the chat template ends a prompt with {CLOSE!r} "
            "(or model.chat_template_kwargs with which it leaves thoughts to the response)"
        )
    if thinking is False and thoughts.state == "open":
        raise UserError(
            f"task.thinking: found false, expected true, as the chat template ends a prompt with {OPEN!r} "
            "(or model.chat_template_kwargs with which it does not)"
        )
    if thinking and thoughts.state == "none":
        logger.warning(
            "task.thinking is true, and the chat template leaves %r to the response: one without thoughts counts as wrong", OPEN
        )


def fit_thoughts(examples: Sequence[Example], thinking: bool | None, thoughts: Thoughts) -> list[Example]:
    """The examples with demonstrations that go on where the template ends: without the "<think>" that it writes itself, with
    one where a thinking response has to write it. Raises UserError, naming the example, for thoughts that cannot fit."""
    if thoughts.state == "none" and not thinking:
        return list(examples)
    return [e if e.demonstration is None else replace(e, demonstration=_fitted(e, thoughts)) for e in examples]


def _fitted(example: Example, thoughts: Thoughts) -> str | tuple[str, ...]:
    shown = example.demonstration
    where = example.metadata.get("origin", example.id)
    if isinstance(shown, tuple):  # the user's messages stand between the responses
        return tuple(text if i % 2 else _response(text, thoughts, where) for i, text in enumerate(shown))
    assert shown is not None, example.id
    return _response(shown, thoughts, where)


def _response(text: str, thoughts: Thoughts, where: str) -> str:
    begun = text.lstrip()
    if thoughts.state == "closed":
        if CLOSE in text or begun.startswith(OPEN):
            reason = f"the chat template ends a prompt with {CLOSE!r}"
            raise UserError(f"{where}: demonstration: found thoughts, expected none, as {reason}")
        return text
    if CLOSE not in text:
        reason = "task.thinking is true" if thoughts.state == "none" else f"the chat template ends a prompt with {OPEN!r}"
        raise UserError(
            f"{where}: demonstration: found no {CLOSE!r}, expected thoughts, as {reason} (set task.thinking to false, with a "
            "template that does not open thoughts, for demonstrations that do not think)"
        )
    if thoughts.state == "none":
        return text if begun.startswith(OPEN) else f"{OPEN}\n{text}"
    return begun.removeprefix(OPEN).removeprefix(thoughts.space) if begun.startswith(OPEN) else text
