"""What a chat template reads beside the messages: variables that the user sets, and the time.

Variables are written into the template, as defaults, so that training, evaluation and whoever loads the exported folder make
the same prompts. The time is a run's, kept in its folder: a run that is resumed on another day must not change its prompts.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Collection, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from nemo_amft.observe.files import write_atomically
from nemo_amft.types import UserError

OWN_VARIABLES = frozenset({"messages", "tools", "documents", "add_generation_prompt", "raise_exception", "strftime_now"})
"""What transformers gives every template itself."""

TIME_FILE = "chat_template_time.txt"
"""In a run directory, where the template reads the clock."""

Template = str | dict[str, str]
"""As a tokenizer has it: one, or several by name."""


def with_defaults(template: Template, variables: Mapping[str, Any], taken: Collection[str] = ()) -> Template:
    """`template` with a default for each of `variables`, which who renders it may still give otherwise.

    `taken`: names that a tokenizer gives by itself (of its special tokens). Raises UserError for a name that the template does
    not read, or that is not the user's to give, and for a value that JSON has not.
    """
    if isinstance(template, dict):
        return {name: with_defaults(one, variables, taken) for name, one in template.items()}
    lines = [_default(name, value, template, {*taken, *OWN_VARIABLES}) for name, value in variables.items()]
    # Jinja, as transformers sets it up, swallows a line break that follows a tag.
    kept = "\n" if lines and template.startswith("\n") else ""
    return "".join(lines) + kept + template


def _default(name: str, value: Any, template: str, given: Collection[str]) -> str:
    key = f"model.chat_template_kwargs.{name}"
    if name in given:
        raise UserError(f"{key}: found a variable that every template is given anyway, expected one of this template's own")
    if not name.isidentifier() or not re.search(rf"\b{name}\b", template):
        near = difflib.get_close_matches(name, sorted(set(re.findall(r"\w+", template))), 1)
        raise UserError(f"{key}: the chat template reads no such variable" + (f"; did you mean {near[0]}?" if near else ""))
    return f"{{%- if {name} is not defined %}}{{%- set {name} = {_literal(value, key)} %}}{{%- endif %}}"


def _literal(value: Any, key: str) -> str:
    """`value` as Jinja writes it: JSON but for null. Characters stay as they are: Jinja reads no pairs of surrogates."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_literal(str(name), key)}: {_literal(item, key)}" for name, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_literal(item, key) for item in value) + "]"
    if value is None:
        return "none"
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError):
        raise UserError(
            f"{key}: found {value!r}, expected a text, number, boolean, null, or a list or mapping of these"
        ) from None


def reads_clock(template: Template) -> bool:
    """Whether a prompt that the template makes may depend on when it is made. The one way to the time that transformers gives a
    template is the function strftime_now."""
    return "strftime_now" in (template if isinstance(template, str) else "".join(template.values()))


def pinned_time(run_dir: Path, template: Template, wanted: str | None) -> datetime | None:
    """The time that the run's template is told: `wanted` (ISO 8601), or when the run was first started. None where the template
    reads no clock.

    It is kept in `run_dir`, so rank 0 calls this first and the other ranks after it. Raises UserError where `wanted` is another
    time than the run's, for one that nothing reads, and for a damaged file.
    """
    if not reads_clock(template):
        if wanted is not None:
            raise UserError(f"model.chat_template_time: found {wanted}, expected null, as the chat template reads no clock")
        return None
    path = run_dir / TIME_FILE
    asked = None if wanted is None else parse_time("model.chat_template_time", wanted)
    if not path.exists():
        now = asked or datetime.now().replace(microsecond=0)
        write_atomically(path, now.isoformat() + "\n")
        return now
    found = parse_time(str(path), path.read_text(encoding="utf-8", errors="replace").strip())
    if asked is not None and asked != found:
        raise UserError(
            f"model.chat_template_time: found {wanted}, expected {found.isoformat()}, with which the run was begun ({path}), "
            "or a folder of its own"
        )
    return found


def parse_time(key: str, text: str) -> datetime:
    """A local date or time in ISO 8601. Raises UserError, in front of which stands `key`."""
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        expected = "a date or a time, such as 2026-01-31 or 2026-01-31T09:30:00"
        raise UserError(f"{key}: found {text[:40]!r}, expected {expected}") from None
