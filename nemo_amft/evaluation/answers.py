"""answers/NAME.jsonl: every response of a benchmark, one JSON object a line, written as they come.

Beside it, NAME.json holds what the responses were drawn with. A run that was killed continues with what is missing; one with
other settings is refused, as two models' or two temperatures' answers in one file would make a score of neither.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from operator import index
from pathlib import Path
from typing import Any

from nemo_amft.config.hub_json import read_object
from nemo_amft.observe.files import write_atomically
from nemo_amft.types import UserError

Place = tuple[int, int]
"""Problem and sample, both counted from 0."""


class Answers:
    """The answers of one benchmark in a run directory. One process reads and writes them."""

    def __init__(self, run_dir: Path, name: str, settings: Mapping[str, Any], keys: Sequence[str]) -> None:
        """Read what is there. `keys` names the problems (problems.problem_hash). Raises UserError if it was drawn otherwise, or
        from other problems."""
        self.file = run_dir / "answers" / f"{name}.jsonl"
        self.rows: dict[Place, dict[str, Any]] = {}
        """In the order written."""
        about = self.file.with_suffix(".json")
        settings = json.loads(json.dumps(dict(settings)))
        if about.exists():
            self._compare(about, settings)
        self.file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(about, json.dumps(settings, indent=1) + "\n")
        self._read(keys)

    def append(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Add `rows` and see them on disk."""
        for row in rows:
            self.rows[(row["index"], row["sample"])] = dict(row)
        with self.file.open("ab") as file:
            file.write(_lines(rows))
            file.flush()
            os.fsync(file.fileno())

    def replace(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Put new verdicts in place of old rows."""
        self.rows.update({(row["index"], row["sample"]): dict(row) for row in rows})
        write_atomically(self.file, _lines(list(self.rows.values())).decode())

    def _compare(self, about: Path, settings: Mapping[str, Any]) -> None:
        found = read_object(about)
        for name in settings.keys() | found.keys():
            if found.get(name) != settings.get(name):
                raise UserError(
                    f"{about}: {name}: found {found.get(name)!r}, expected {settings.get(name)!r}; "
                    "give exp_manager.explicit_log_dir another folder, or delete the old answers"
                )

    def _read(self, keys: Sequence[str]) -> None:
        if not self.file.exists():
            return
        data = self.file.read_bytes()
        whole = data.rfind(b"\n") + 1
        if whole < len(data):  # the line that was being written when the run was killed
            os.truncate(self.file, whole)
        for number, line in enumerate(data[:whole].split(b"\n")[:-1], start=1):
            try:
                row = json.loads(line)
                place, key, name = (index(row["index"]), index(row["sample"])), row["key"], row["id"]
                whole_line = min(place) >= 0
            except (ValueError, KeyError, TypeError, RecursionError):
                whole_line = False
            if not whole_line:
                raise UserError(f"{self.file}, line {number}: found a damaged line, expected an answer") from None
            if place[0] < len(keys) and keys[place[0]] != key:
                raise UserError(f"{self.file}, line {number}: found an answer to another problem than {name} is now")
            self.rows[place] = row


def places(samples: Sequence[int]) -> list[Place]:
    """All places of problems with so many samples each, problem by problem."""
    return [(index, sample) for index, count in enumerate(samples) for sample in range(count)]


def chunks(samples: Sequence[int], size: int, done: Mapping[Place, Any] | set[Place]) -> list[list[Place]]:
    """What is left to draw, in pieces of at most `size`, problem by problem; samples[i] of problem i.

    The cuts lie where they would without anything done, so that a continued run draws in the company it would have had: sums in
    a batch may round differently in another.
    """
    every = places(samples)
    pieces = [[p for p in every[start : start + size] if p not in done] for start in range(0, len(every), size)]
    return [piece for piece in pieces if piece]


def _lines(rows: Sequence[Mapping[str, Any]]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode("utf-8", errors="backslashreplace")
