"""Strict conversion of plain mappings (YAML, command line) into frozen dataclasses. An error is one line, its key in front."""

from __future__ import annotations

import dataclasses
import difflib
import math
import os
import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from nemo_amft.types import UserError

LOCAL = "a path, or what may be one"
Location = Annotated[str, LOCAL]
"""The type of a key that names something on this machine, or that may: ~ at its start is a home directory."""

LONGEST_NAME = 255
"""Bytes of a name in a path, as Linux has it."""


def at_home(path: str) -> str:
    """`path` with a leading ~ or ~user as that home directory, where there is one."""
    return os.path.expanduser(path)


def local_path(text: str) -> Path:
    """The path that an argument of a command line names."""
    return Path(at_home(text))


def build(cls: type, values: Any, section: str, known: Sequence[str], base: Any = None) -> Any:
    """Make a `cls` from `values`.

    `section` is the dotted name in front of the keys, `known` every key that may be suggested for an unknown one, and `base` an
    instance that gives the values left out (a section's default need not be its class's: the critic's learning rate is not the
    policy's). Raises UserError.
    """
    if not isinstance(values, Mapping):
        raise UserError(f"{section}: expected keys of its own, found {show(values)}")
    hints = get_type_hints(cls, include_extras=True)
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init}
    for name in values:
        if name not in fields:
            key = join(section, str(name))
            raise UserError(f"{key}: unknown key; did you mean {nearest_key(key, known)}?")
    arguments = {}
    for name, spec in fields.items():
        key, default = join(section, name), _default(spec, base)
        if name not in values:
            if default is dataclasses.MISSING:
                raise UserError(f"{key}: missing; expected {describe(hints[name])}")
            arguments[name] = default
        elif dataclasses.is_dataclass(hints[name]):
            nested_base = default if dataclasses.is_dataclass(default) else None
            arguments[name] = build(hints[name], values[name], key, known, nested_base)
        else:
            arguments[name] = convert(values[name], hints[name], key)
    try:
        return cls(**arguments)
    except UserError:
        raise
    except ValueError as error:  # a plug-in's own __post_init__
        raise UserError(f"{section}: {one_line(error)}") from error


def convert(value: Any, expected: Any, key: str) -> Any:
    """`value` as type `expected`. Accepts what YAML cannot write otherwise, nothing more. Raises UserError."""
    if expected is Any:
        return value
    if value == "???":  # hydra's mark for "the user must say"
        raise UserError(f"{key}: missing; expected {describe(expected)} ({key}=...)")
    origin = get_origin(expected)
    if origin is Annotated:
        found = convert(value, get_args(expected)[0], key)
        return _path(found, key) if LOCAL in get_args(expected) else found
    if origin is Literal:
        return _literal(value, get_args(expected), key)
    if origin in (Union, types.UnionType):
        return _union(value, expected, key)
    if expected is float:
        return _float(value, key)
    if dataclasses.is_dataclass(expected):
        return build(expected, value, key, list(keys_of(expected, key)))
    container = origin or expected
    if container in (tuple, list) and isinstance(value, list | tuple):
        return _sequence(value, expected, key)
    if container is dict and isinstance(value, Mapping):
        inner = (get_args(expected) or (str, Any))[1]
        return {str(name): convert(item, inner, join(key, str(name))) for name, item in value.items()}
    # A bool is an int to Python; to the user `max_steps: true` is a mistake.
    if container in (int, str, bool) and type(value) is container:
        return value
    raise _wrong(value, expected, key)


class _NoPath(UserError):
    """Text, and so what was asked for, but no path."""


def _path(text: str, key: str) -> str:
    """`text` as a path. Raises UserError for one that no system has, of which even asking whether it is there may fail."""
    try:
        longest = max(map(len, os.fsencode(text).split(b"/")))
    except UnicodeEncodeError:
        raise _NoPath(f"{key}: found {show(text)}, expected a path without lone surrogates") from None
    if "\0" in text or longest > LONGEST_NAME:
        raise _NoPath(f"{key}: found {show(text)}, expected names of at most {LONGEST_NAME} bytes, without U+0000")
    return at_home(text)


def _literal(value: Any, options: tuple[Any, ...], key: str) -> Any:
    for option in options:
        # YAML and hydra read precision=32 as a number where the schema says "32".
        as_text = isinstance(option, str) and type(value) is int and str(value) == option
        if as_text or (type(value) is type(option) and value == option):
            return option
    raise UserError(f"{key}: found {show(value)}, expected one of {', '.join(str(option) for option in options)}")


def _union(value: Any, expected: Any, key: str) -> Any:
    members = get_args(expected)
    if value is None and type(None) in members:
        return None
    members = [member for member in members if member is not type(None)]
    inside = ""
    for member in members:
        try:
            return convert(value, member, key)
        except _NoPath:
            raise
        except UserError as error:
            if not str(error).startswith(f"{key}: ") and len(str(error).partition(":")[0]) > len(inside.partition(":")[0]):
                inside = str(error)  # of the members, the one that fits best is right furthest into the value
            if len(members) == 1 and get_origin(member) not in (None, Annotated):
                raise  # says more than "expected X or null" does
    raise UserError(inside) if inside else _wrong(value, expected, key)


def _float(value: Any, key: str) -> float:
    if isinstance(value, str):  # YAML 1.1 reads 1e-6, without a dot, as text
        try:
            value = float(value)
        except ValueError:
            raise _wrong(value, float, key) from None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _wrong(value, float, key)
    if not math.isfinite(value):
        raise UserError(f"{key}: expected a finite float, found {value}")
    return float(value)


def _sequence(value: Sequence[Any], expected: Any, key: str) -> Any:
    container, inner = get_origin(expected) or expected, get_args(expected)
    if container is list or inner[1:] == (Ellipsis,) or not inner:
        return container(convert(item, (inner or (Any,))[0], f"{key}[{i}]") for i, item in enumerate(value))
    if len(value) != len(inner):
        raise _wrong(value, expected, key)
    return tuple(convert(item, kind, f"{key}[{i}]") for i, (item, kind) in enumerate(zip(value, inner, strict=True)))


def _default(spec: dataclasses.Field, base: Any) -> Any:
    if base is not None:
        return getattr(base, spec.name)
    return spec.default_factory() if spec.default_factory is not dataclasses.MISSING else spec.default


def _wrong(value: Any, expected: Any, key: str) -> UserError:
    return UserError(f"{key}: expected {describe(expected)}, found {show(value)}")


def describe(expected: Any) -> str:
    """A type as the user knows it: int, "str or null", "[float, float]"."""
    origin, inner = get_origin(expected), get_args(expected)
    if expected is Any:
        return "a value"
    if origin is Annotated:
        return describe(inner[0])
    if expected is type(None):
        return "null"
    if dataclasses.is_dataclass(expected):
        return "keys of its own"
    if origin is Literal:
        return "one of " + ", ".join(str(option) for option in inner)
    if origin in (Union, types.UnionType):
        return " or ".join(describe(member) for member in inner)
    if origin in (tuple, list):
        return "[" + ", ".join("..." if member is Ellipsis else _describe_item(member) for member in inner) + "]"
    return "a mapping" if origin is dict or expected is dict else getattr(expected, "__name__", str(expected))


def _describe_item(expected: Any) -> str:
    if dataclasses.is_dataclass(expected):
        return "{" + ", ".join(field.name for field in dataclasses.fields(expected)) + "}"
    return describe(expected)


def show(value: Any) -> str:
    """A value as an error quotes it, on one line and not endless."""
    text = "null" if value is None else one_line(repr(value))
    return text if len(text) <= 80 else text[:77] + "..."


def one_line(message: object) -> str:
    """A message with its line breaks and runs of spaces taken out."""
    return " ".join(str(message).split())


def join(section: str, name: str) -> str:
    """A dotted key."""
    return f"{section}.{name}" if section else name


def keys_of(cls: type, section: str = "") -> Iterator[str]:
    """Every dotted key of a dataclass and of those nested in it."""
    for name, hint in get_type_hints(cls).items():
        yield join(section, name)
        if dataclasses.is_dataclass(hint):
            yield from keys_of(hint, join(section, name))


def nearest(name: str, options: Iterable[str]) -> list[str]:
    """All `options`, the one most like `name` first."""
    return sorted(options, key=lambda option: (-difflib.SequenceMatcher(None, name, option).ratio(), option))


def nearest_key(key: str, known: Sequence[str]) -> str:
    """The known key most likely meant: a typo undone, the right name in another section, an abbreviation, or the closest."""
    section, _, name = key.rpartition(".")
    siblings = [path for path in known if path.rpartition(".")[0] == section]
    typo = difflib.get_close_matches(key.rpartition(".")[2], [path.rpartition(".")[2] for path in siblings], 1, 0.8)
    if typo:
        return join(section, typo[0])
    elsewhere = [path for path in known if path.rpartition(".")[2] == name]
    abbreviated = [path for path in siblings if _abbreviates(path.rpartition(".")[2], name)]
    return nearest(key, elsewhere or abbreviated or known)[0]


def _abbreviates(one: str, other: str) -> bool:
    """Whether one is the initials of the other: lr and learning_rate."""
    return one in _initials(other) or other in _initials(one)


def _initials(name: str) -> tuple[str, ...]:
    words = [word for word in name.split("_") if word]
    return ("".join(word[0] for word in words),) if len(words) > 1 else ()
