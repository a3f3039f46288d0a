"""One `key=value` of the command line: what hydra's grammar needs done to it, and what to say where it does not take it.

A value of letters, digits, blanks inside it and / - + . $ % * @ ? | : stands for itself; other signs need quotes, within those
of the shell.
"""

from __future__ import annotations

import dataclasses
import re
import shlex
import types
from typing import Any, Union, get_args, get_origin, get_type_hints

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException

from nemo_amft.config import typed
from nemo_amft.config.schema import Config
from nemo_amft.config.validate import mask_argument
from nemo_amft.types import UserError

_SIGN = re.compile(r"[^\w/\-\\+.$%*@?|: \t]|[^\x00-\x7f]")
"""What a value may hold only in quotes."""

_PLAIN = re.compile(r"[A-Za-z_/][A-Za-z0-9_./+@%-]*")
_WORD = re.compile(r"true|false|null|inf|nan", re.IGNORECASE)

# A home directory that starts a value, an element of a list or a value of a mapping, without a sign that needs more thought.
_HOME = re.compile(r"(^|[\[{,:]\s*)(~[\w./\-+@%]*(?::\w+)?)(?=\s*(?:$|[,\]}]))")


def quoted(text: str) -> str:
    """`text` as hydra's grammar reads it back unchanged."""
    # A backslash is itself, but for those in front of a quote.
    return '"' + re.sub(r'(\\*)("|$)', lambda found: found[1] * 2 + ('\\"' if found[2] else ""), text) + '"'


def argument(key: str, text: str) -> str:
    """`key=text` for hydra, with quotes where they are needed."""
    return f"{key}={text if _PLAIN.fullmatch(text) and not _WORD.fullmatch(text) else quoted(text)}"


def with_homes_quoted(text: str) -> str:
    """An override whose value may start with ~, which hydra's grammar does not know."""
    key, equals, value = text.partition("=")
    if "~" not in value or '"' in value or "'" in value:
        return text
    return key + equals + _HOME.sub(lambda found: found[1] + quoted(found[2]), value)


def parse(text: str) -> Override:
    """Hydra's reading of `text`. Raises UserError where it has none, several values, or something else than text for a key of
    text; the message has the quotes to write in a shell."""
    key, _, value = text.lstrip("+").partition("=")
    shown = mask_argument(f"{key}={value}").partition("=")[2]
    is_text = takes_text(key)
    try:
        found = OverridesParser.create().parse_override(text)
    except HydraException as error:
        if is_text or (is_text is None and not value.startswith(("[", "{"))):
            raise UserError(_needs_quotes(key, shown)) from error
        reason = "not in hydra's grammar" if shown != value else typed.one_line(error)
        raise UserError(f"{key}={shown}: {reason} (quote a value with special characters)") from error
    if found.is_sweep_override():
        grid = "slurm/sweep.sh and nemo_amft.study run a grid"
        if is_text or (is_text is None and not _numbers(value)):
            raise UserError(_needs_quotes(key, shown, f" ({grid})"))
        raise UserError(f"{key}: found several values, {shown}, expected one (a list is [{shown}]); {grid}")
    if is_text and not found.is_delete() and not isinstance(found.value(), str | list | None):
        raise UserError(f"{key}: found {shown}, expected text; in a shell: {in_a_shell(key, shown)}")
    return found


def in_a_shell(key: str, value: str) -> str:
    """What to write in a shell to give `key` this text."""
    return shlex.quote(f"{key}={quoted(value)}")


def takes_text(key: str) -> bool | None:
    """Whether the value of a key is text, or may be; None where the schema does not say, as within plug-ins."""
    kind: Any = Config
    for name in key.split("."):
        hints = get_type_hints(kind) if dataclasses.is_dataclass(kind) else {}
        if get_origin(kind) is dict:
            kind = get_args(kind)[1]
        elif name in hints:
            kind = hints[name]
        else:
            return None
        single = [member for member in get_args(kind) if member is not type(None) and get_origin(member) is not tuple]
        kind = single[0] if get_origin(kind) in (Union, types.UnionType) and len(single) == 1 else kind
    return None if kind is Any else kind is str


def _numbers(value: str) -> bool:
    return re.fullmatch(r"[-+.\deE, ]+", value) is not None


def _needs_quotes(key: str, value: str, aside: str = "") -> str:
    sign = _SIGN.search(value)
    what = f"{sign[0]!r} in {value}" if sign else value
    return f"{key}: found {what}, expected quotes around such a value{aside}; in a shell: {in_a_shell(key, value)}"
