"""Problems from files, folders and the hub, checked row by row.

Where rows come from is in places.py and readers.py, how they are read in schemas.py. Anything wrong raises UserError with one
line that names the file, the row and the key, what was found and what is expected; nothing is returned before every row that
is kept has been checked.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Literal

from nemo_amft.data import places, schemas
from nemo_amft.data.golds import readable, unprovable
from nemo_amft.data.readers import Placed
from nemo_amft.data.rows import ABSENT, Row, RowError
from nemo_amft.data.schemas import Problem, Schema
from nemo_amft.data.shown import Shown
from nemo_amft.types import Example, UserError

logger = logging.getLogger(__name__)

Need = Literal["answer", "demonstration"]


def load_examples(
    source: str | Sequence[str],
    split: str = "train",
    unique: bool = True,
    need: Need = "answer",
    demonstrations: bool = True,
) -> list[Example]:
    """All problems of `source`: a file, a glob, a folder or a hub id, of which `split` is read (see places.py), or several.

    `need` says what every row must have: an answer to verify responses with, or a demonstration, where rows are to be imitated
    only. In the latter case a row without an answer gives an Example whose `answer` is "", rows without a demonstration are
    left out, which is logged as a warning, and two rows are the same only if their demonstrations are. Without
    `demonstrations` those that rows have are not looked at. Where answers are needed, rows with "proof", "notfound" and their
    like in that place are left out, which is logged as a warning.

    A problem that an earlier row has already, letter for letter, is dropped if `unique`, also where its answer is another one;
    how many were is logged as a warning, other answers apart. Each file's schema is told by its first row.
    """
    assert demonstrations or need == "answer", need
    sources = places.sources_of(source)
    collected = _Collected(unique, need, demonstrations)
    for one in sources:
        before = collected.rows
        for file in places.rows_of(one, split):
            collected.take(file, one, places.name_of(one))
        if collected.rows == before:
            raise UserError(f"{one}: found no rows, expected at least one")
    collected.say(", ".join(sources))
    return collected.examples


@dataclass
class _Collected:
    """Examples of the rows read so far, and what was noticed on the way."""

    unique: bool
    need: Need
    demonstrations: bool
    rows: int = 0
    examples: list[Example] = field(default_factory=list)
    _first: dict[Any, tuple[str, str]] = field(default_factory=dict)
    """What makes a problem one -> where its first row stands, and its answer."""
    _bare: list[str] = field(default_factory=list)
    _repeated: list[str] = field(default_factory=list)
    _contradicting: list[str] = field(default_factory=list)
    _unprovable: list[str] = field(default_factory=list)

    def take(self, file: Iterator[Placed], source: str, name: str) -> None:
        """Read the rows of one file. Raises UserError."""
        first = next(file, None)
        if first is None:
            return
        schema = schemas.schema_of(first[1])
        if schema is None:
            raise UserError(f"{source}: {schemas.refusal(first[1])}")
        for origin, row in chain([first], file):
            try:
                example = self._example(origin, row, schema, name)
            except RowError as error:
                raise UserError(f"{origin}, {error}") from None
            self.rows += 1
            if example is not None:
                self.examples.append(example)

    def _example(self, origin: str, row: Row, schema: Schema, name: str) -> Example | None:
        """None for a row that is left out."""
        problem = schema.problem(row)
        if self.need == "answer":
            if problem.answer is None:
                raise _unanswered(row, problem, schema)
            if unprovable(problem.answer):
                self._unprovable.append(f"{origin}, {readable(problem.answer)!r}")
                return None
            if self._seen_before(origin, problem, None):
                return None  # as early as that: some sets hold each row a hundred times
        demonstration = schema.demonstration(row, problem) if self.demonstrations else None
        schemas.refuse_left_out(row, problem, demonstration, self.demonstrations)
        if self.need == "demonstration":
            if demonstration is None:
                self._bare.append(origin)
                return None
            if self._seen_before(origin, problem, demonstration):
                return None
        return Example(
            id=f"{name}/{self.rows}",
            messages=problem.messages,
            answer=problem.answer or "",
            demonstration=demonstration,
            source=schemas.source_of(row) or name,
            metadata={"origin": origin, "choice": problem.choice, "category": schemas.category_of(row)},
        )

    def _seen_before(self, origin: str, problem: Problem, demonstration: Shown | None) -> bool:
        if not self.unique:
            return False
        key = (demonstration, *((message["role"], message["content"]) for message in problem.messages))
        answer = "" if problem.answer is None else problem.answer.strip()
        if key not in self._first:
            self._first[key] = origin, answer
            return False
        first, other = self._first[key]
        if answer == other or demonstration is not None:
            self._repeated.append(f"{origin} repeats {first}")
        else:
            self._contradicting.append(f"{origin} contradicts {first}, {readable(answer)!r} against {readable(other)!r}")
        return True

    def say(self, source: str) -> None:
        """Warn of the rows that were left out. Raises UserError if none is left."""
        if self._bare:
            logger.warning("%s: %d rows without a demonstration left out (first: %s)", source, len(self._bare), self._bare[0])
        if self._unprovable:
            first = self._unprovable[0]
            logger.warning("%s: %d rows whose answer grades nothing left out (first: %s)", source, len(self._unprovable), first)
        if not self.examples:
            lacking = "a demonstration" if self.need == "demonstration" else "an answer to verify responses with"
            raise UserError(f"{source}: found no row with {lacking}, expected at least one")
        if self._repeated:
            logger.warning("%s: %d duplicate problems dropped (first: %s)", source, len(self._repeated), self._repeated[0])
        if self._contradicting:
            found = self._contradicting
            logger.warning(
                "%s: %d rows dropped that give a problem another answer than its first row does, which is kept (first: %s)",
                source, len(found), found[0],
            )  # fmt: skip


def _unanswered(row: Row, problem: Problem, schema: Schema) -> RowError:
    found = schemas.found_at(row, problem.answer_key)
    imitable = found is ABSENT and schema.demonstration(row, problem) is not None
    hint = " (rows without one can be imitated only: data.demonstrations)" if imitable else ""
    return RowError(problem.answer_key, found, problem.wanted + hint)
