"""Strategies that spoil: values of JSON that nobody expects, objects with something changed, files with bytes changed."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

WORDS = ("", " ", "nan", "null", "0", "-1", "true", "a", "é数", "\u2028", "\x00", "\x1b[1m", "\ud800", "{}", "[", "\n",
         "A" * 300, "<|end|>", "../x", "~", "%s", "{0}", "$x", "\\")  # fmt: skip
NUMBERS = (0, 1, -1, 2, 3, 7, 10**6, 2**31, 2**63, 10**30, -(2**63), 0.0, -0.0, 0.5, 1e-300, 1e300, 1e-7)

TEXTS = st.sampled_from(WORDS) | st.text(max_size=12)
SCALARS = st.none() | st.booleans() | st.sampled_from(NUMBERS) | TEXTS
UNUSUAL = SCALARS | st.sampled_from((float("inf"), float("-inf"), float("nan")))
VALUES = st.recursive(
    UNUSUAL, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3), max_leaves=5
)
"""Anything that json.dumps writes."""


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [path] if path else []
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in list(items)[:40]:  # of a vocabulary the beginning
        found += _places(item, (*path, key))
    return found


@st.composite
def spoilt(draw: st.DrawFn, value: Any, most: int = 3) -> Any:
    """A copy of a JSON value in which up to `most` things are changed."""
    value = copy.deepcopy(value)
    for _ in range(draw(st.integers(0, most))):
        places = _places(value)
        if not places:
            return draw(VALUES)
        *way, last = draw(st.sampled_from(places))
        holder = value
        for key in way:
            holder = holder[key]
        change = draw(st.sampled_from(("value", "scalar", "delete", "add", "twice")))
        if change == "value":
            holder[last] = draw(VALUES)
        elif change == "scalar":
            holder[last] = draw(SCALARS)
        elif change == "delete":
            del holder[last]
        elif change == "add" and isinstance(holder, dict):
            holder[draw(TEXTS)] = draw(VALUES)
        elif change == "twice" and isinstance(holder, list):
            holder.append(copy.deepcopy(holder[last]))
    return value


@st.composite
def damaged(draw: st.DrawFn, content: bytes, most: int = 4) -> bytes:
    """`content` with bytes changed, lost, or put in."""
    found = bytearray(content)
    for _ in range(draw(st.integers(1, most))):
        at = draw(st.integers(0, max(0, len(found) - 1)))
        change = draw(st.sampled_from(("flip", "cut", "insert", "drop", "end")))
        if change == "flip" and found:
            found[at] ^= 1 << draw(st.integers(0, 7))
        elif change == "cut":
            del found[at:]
        elif change == "insert":
            found[at:at] = draw(st.binary(min_size=1, max_size=8))
        elif change == "drop":
            del found[at : at + draw(st.integers(1, 16))]
        elif change == "end":
            found += draw(st.binary(min_size=1, max_size=8))
    return bytes(found)


Files = Mapping[str, bytes]


@dataclass(frozen=True)
class Folder:
    """Files, some of which are not as they were."""

    files: Callable[[], Files]
    changed: tuple[tuple[str, bytes | None], ...]
    """None: gone."""

    def __repr__(self) -> str:
        return f"{self.files}: {dict(self.changed)}"

    @contextlib.contextmanager
    def written(self) -> Iterator[Path]:
        """The folder, while it is there; what the product prints about it is not shown."""
        with tempfile.TemporaryDirectory(prefix="fuzz-") as name, contextlib.redirect_stderr(io.StringIO()):
            for file, content in (dict(self.files()) | dict(self.changed)).items():
                if content is not None:
                    (Path(name) / file).parent.mkdir(parents=True, exist_ok=True)
                    (Path(name) / file).write_bytes(content)
            yield Path(name)


def json_bytes(value: Any) -> bytes:
    """A value as a file of JSON has it."""
    return json.dumps(value).encode("utf-8", errors="surrogatepass")


NO_OBJECTS = st.sampled_from(
    (b"", b"{", b"[]", b"null", b'"a"', b"\xff\xfe{}", b"{} {}", b"[" * 3000 + b"]" * 3000, b'{"a": 1e999}')
)


@st.composite
def folders(draw: st.DrawFn, files: Callable[[], Files], which: tuple[str, ...] = ()) -> Folder:
    """`files` with something changed in one or two of `which`, or of all."""
    found = files()
    changed: list[tuple[str, bytes | None]] = []
    names = [name for name in which or sorted(found) if name in found]
    for name in draw(st.lists(st.sampled_from(names), min_size=1, max_size=2, unique=True)):
        way = draw(st.sampled_from(("json",) * 6 + ("bytes", "no object", "gone")))
        lines = name.endswith(".jsonl")
        if way == "gone":
            changed.append((name, None))
        elif way == "no object":
            changed.append((name, draw(NO_OBJECTS)))
        elif way == "bytes" or not name.endswith((".json", ".jsonl", ".lock", ".yaml")):
            changed.append((name, draw(damaged(found[name]))))
        else:
            value = draw(spoilt([json.loads(line) for line in found[name].splitlines()] if lines else json.loads(found[name])))
            rows = value if lines and isinstance(value, list) else [value]
            changed.append((name, b"\n".join(map(json_bytes, rows)) + b"\n"))
    return Folder(files, tuple(changed))
