"""Problems from a .parquet file, a .jsonl file or the hub, checked row by row.

Schemas are told apart by their columns (see schemas.py). Anything wrong raises UserError with one line that names the file,
the row and the key, what was found and what is expected; nothing is returned before every row has been checked.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from nemo_amft.data.schemas import RowError, Schema, detect_schema
from nemo_amft.types import Example, UserError

logger = logging.getLogger(__name__)

SUFFIXES = (".parquet", ".jsonl")

HUB_ID = re.compile(r"(?P<id>[\w-][\w.-]*(/[\w-][\w.-]*)?)(:(?P<config>[\w.-]+))?")

FILE_SUFFIXES = {".json", ".csv", ".tsv", ".txt", ".gz", ".zst", ".zip", ".arrow", ".pkl", ".xlsx", ".yaml", *SUFFIXES}
"""What makes a name a file's rather than a hub id, which may hold dots too."""

Row = tuple[str, Mapping[str, Any]]
"""Where the row stands, for messages, and its values."""


Need = Literal["answer", "demonstration"]


def load_examples(
    source: str, split: str = "train", schema: Schema | None = None, unique: bool = True, need: Need = "answer"
) -> list[Example]:
    """All problems of `source`: a .parquet or .jsonl file, or "hub/id" or "hub/id:config", of which `split` is read.

    `need` says what every row must have: an answer to verify responses with, or a demonstration, where rows are to be imitated
    only. In the latter case a row without an answer gives an Example whose `answer` is "", rows without a demonstration are
    left out, which is logged as a warning, and two rows are the same only if their demonstrations are.

    A problem that an earlier row has already, letter for letter, is dropped if `unique`; how many were is logged as a warning.
    `schema` says how rows are to be read; None: their columns say. Files are read without the datasets library, whose errors
    name neither row nor line and whose cache copies them.
    """
    rows = _rows(source, split)
    first = next(rows, None)
    if first is None:
        raise UserError(f"{source}: found no rows, expected at least one")
    schema = schema or detect_schema(first[1])
    if schema is None:
        columns = ", ".join(sorted(map(str, first[1]))) or "none"
        raise UserError(
            f"{source}: columns: found {columns}, expected 'prompt' with 'reward_model' (and 'target'), "
            "'question' with 'answer', or 'prompt' with 'answer' (and 'demonstration')"
        )
    name = Path(source).stem if source.endswith(SUFFIXES) else source
    seen: dict[tuple[tuple[str, str], ...], str] = {}
    examples, duplicates, bare = [], [], []
    for number, (origin, row) in enumerate(_chain(first, rows)):
        try:
            problem = schema(row)
        except RowError as error:
            raise UserError(f"{origin}, {error}") from None
        if need == "answer" and problem.answer is None:
            raise UserError(f"{origin}: found no answer to verify responses with, expected one")
        if need == "demonstration" and problem.demonstration is None:
            bare.append(origin)
            continue
        key = tuple((message["role"], message["content"]) for message in problem.messages)
        if need == "demonstration":
            key = (*key, ("assistant", repr(problem.demonstration)))
        if unique and key in seen:
            duplicates.append((origin, seen[key]))
            continue
        seen[key] = origin
        examples.append(
            Example(
                id=f"{name}/{number}",
                messages=problem.messages,
                answer=problem.answer or "",
                demonstration=problem.demonstration,
                source=problem.source or name,
                metadata={"origin": origin, "choice": problem.choice, "category": problem.category},
            )
        )
    if bare:
        logger.warning("%s: %d rows without a demonstration left out (first: %s)", source, len(bare), bare[0])
        if not examples:
            raise UserError(f"{source}: found no row with a demonstration, expected at least one")
    if duplicates:
        logger.warning("%s: %d duplicate problems dropped (first: %s repeats %s)", source, len(duplicates), *duplicates[0])
    return examples


def _rows(source: str, split: str) -> Iterator[Row]:
    path = Path(source).expanduser()
    if path.is_dir():
        raise UserError(f"{source}: found a directory, expected a .parquet or .jsonl file or a hub id")
    is_file = path.exists() or path.suffix.lower() in FILE_SUFFIXES or source.startswith(("/", ".", "~"))
    if not is_file and (hub := HUB_ID.fullmatch(source)):
        return _hub_rows(hub["id"], hub["config"], split)
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(f"{source}: found extension {path.suffix!r}, expected .parquet or .jsonl")
    try:
        size = path.stat().st_size
        path.open("rb").close()
    except FileNotFoundError:
        raise UserError(f"{source}: found no such file, expected a .parquet or .jsonl file") from None
    except OSError as error:
        raise UserError(f"{source}: cannot be read: {error.strerror}") from None
    if size == 0:
        raise UserError(f"{source}: found an empty file, expected at least one row")
    return _parquet_rows(path) if path.suffix.lower() == ".parquet" else _jsonl_rows(path)


def _jsonl_rows(path: Path) -> Iterator[Row]:
    # Read as bytes: iterating text would also break lines inside strings, at U+2028 for one.
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            origin = f"{path}, line {number}"
            line = line.rstrip(b"\r\n")
            if not line.strip():
                continue
            try:
                row = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
            except UnicodeDecodeError as error:
                at = f"byte 0x{line[error.start]:02x} at column {error.start + 1}"
                raise UserError(f"{origin}: found {at}, expected UTF-8") from None
            except json.JSONDecodeError as error:
                what = f"malformed JSON ({error.msg} at column {error.colno})"
                raise UserError(f"{origin}: found {what}, expected an object") from None
            if not isinstance(row, dict):
                raise UserError(f"{origin}: found {type(row).__name__} at the top level, expected an object")
            yield origin, row


def _parquet_rows(path: Path) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=256):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{path}, row {number}", row
    except UnicodeDecodeError as error:
        where = f"{path}, between rows {number + 1} and {number + 256}"
        raise UserError(f"{where}: found byte 0x{error.object[error.start]:02x} in text, expected UTF-8") from None
    except (pyarrow.ArrowException, OSError) as error:
        where = f"{path}, row {number + 1}" if number else str(path)
        raise UserError(f"{where}: found a damaged parquet file ({_one_line(error)}), expected a complete one") from None


def _hub_rows(hub_id: str, config: str | None, split: str) -> Iterator[Row]:
    import datasets

    try:
        rows = datasets.load_dataset(hub_id, config, split=split)
    except Exception as error:  # the hub client raises many kinds, for network, name, login and split
        reason = f"{type(error).__name__}: {_one_line(error)}"
        raise UserError(f"{hub_id}: cannot load split {split!r} from the hub ({reason})") from None
    for number, row in enumerate(rows, start=1):
        yield f"{hub_id} {split}, row {number}", row


def _chain(first: Row, rows: Iterator[Row]) -> Iterator[Row]:
    yield first
    yield from rows


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:160]
