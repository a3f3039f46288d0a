"""Rows of a file on this machine, each with where it stands; what is wrong with one is one line that names file and row.

Files are read without the datasets library, whose errors name neither row nor line and whose cache copies them.
"""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator
from itertools import count
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from nemo_amft.data.rows import Row
from nemo_amft.types import UserError

if TYPE_CHECKING:
    import pyarrow

Placed = tuple[str, Row]
"""Where a row stands, for messages, and its values."""

MAX_LINE_BYTES = 256 * 2**20
"""A longer line is no row: the file is of another kind, or its line ends are lost."""


def _zstandard(path: Path) -> IO[bytes]:
    import pyarrow

    return io.BufferedReader(pyarrow.input_stream(str(path), compression="zstd"))


COMPRESSIONS: dict[str, Callable[[Path], Any]] = {
    ".gz": gzip.open,
    ".zst": _zstandard,
    ".zstd": _zstandard,
    ".bz2": bz2.open,
    ".xz": lzma.open,
}

EXPECTED = ".jsonl, .json or .csv (also .gz, .zst, .bz2 or .xz of these), .parquet or .arrow"
"""The kinds of file, for messages."""


def kind_of(path: Path) -> str | None:
    """The extension by which a file is read, without that of its compression; None for one that is not."""
    suffixes = [suffix.lower() for suffix in path.suffixes[-2:]] or [""]
    if suffixes[-1] in COMPRESSIONS:
        return next((kind for kind in suffixes[-2:-1] if kind in TEXTS), None)
    return suffixes[-1] if suffixes[-1] in READERS else None


def read(path: Path) -> Iterator[Placed]:
    """The rows of a file. Raises UserError for a file that cannot be read, and for the first row that is none."""
    kind = kind_of(path)
    if kind is None:
        raise UserError(f"{path}: found extension {''.join(path.suffixes[-2:])!r}, expected {EXPECTED}")
    try:
        size = path.stat().st_size
        path.open("rb").close()
    except FileNotFoundError:
        raise UserError(f"{path}: found no such file, expected one that ends with {EXPECTED}") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    if size == 0:
        raise UserError(f"{path}: found an empty file, expected at least one row")
    return READERS[kind](path)


# ---- text


def _json_lines(path: Path) -> Iterator[Placed]:
    for number, line in _lines(path):
        if line.strip():
            yield f"{path}, line {number}", _object(line, f"{path}, line {number}")


def _json(path: Path) -> Iterator[Placed]:
    """A list of objects, or an object a line."""
    line = next((line for _, line in _lines(path) if line.strip()), b"")
    if not line.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"["):
        yield from _json_lines(path)
        return
    whole = _decoded(b"\n".join(line for _, line in _lines(path)), str(path))
    yield from _items(path, whole)


def _items(path: Path, whole: str) -> Iterator[Placed]:
    """The objects of a list, one by one: an error of the whole text would not say in which it is."""
    decoder, place = json.JSONDecoder(), _after_space(whole, _after_space(whole, 0) + 1)
    for number in count(1):
        if whole[place : place + 1] == "]" and number == 1:
            return
        origin = f"{path}, row {number}"
        row, place = _parsed(lambda start=place: decoder.raw_decode(whole, start), origin)
        yield origin, _checked(row, origin)
        place = _after_space(whole, place)
        mark, place = whole[place : place + 1], _after_space(whole, place + 1)
        if mark == "]":
            if whole[place:]:
                raise UserError(f"{origin}: found {whole[place : place + 20]!r} after the list, expected its end")
            return
        if mark != ",":
            raise UserError(f"{origin}: found {mark!r} after it, expected ',' or ']'")


def _after_space(whole: str, place: int) -> int:
    while whole[place : place + 1] in (" ", "\t", "\r", "\n"):
        place += 1
    return place


def _csv(path: Path) -> Iterator[Placed]:
    """Comma-separated values below a line with the columns' names, quoted as RFC 4180 has it: all of them texts."""
    csv.field_size_limit(MAX_LINE_BYTES)
    last = 0

    def lines() -> Iterator[str]:
        nonlocal last
        for last, line in _lines(path):
            yield _decoded(line, f"{path}, line {last}") + "\n"

    columns: list[str] = []
    try:
        for values in csv.reader(lines(), strict=True):
            origin = f"{path}, line {last}"
            if not columns:
                columns = values
                if len(set(columns)) < len(columns):
                    raise UserError(f"{origin}: found the columns {', '.join(columns)}, expected a name for each of its own")
            elif values:  # no blank line
                if len(values) != len(columns):
                    raise UserError(f"{origin}: found {len(values)} values, expected {len(columns)}, one a column")
                yield origin, dict(zip(columns, values, strict=True))
    except csv.Error as error:
        raise UserError(f"{path}, line {last}: found malformed CSV ({error}), expected comma-separated values") from None


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Numbered lines without their ends, as bytes: iterating text would also break lines inside strings, at U+2028 for one."""
    number = 0
    try:
        with COMPRESSIONS.get(path.suffix.lower(), lambda path: path.open("rb"))(path) as lines:
            for number in count(1):
                line = lines.readline(MAX_LINE_BYTES + 1)
                if not line:
                    return
                if len(line) > MAX_LINE_BYTES:
                    found = f"a line of more than {MAX_LINE_BYTES // 2**20} MiB"
                    raise UserError(f"{path}, line {number}: found {found}, expected an object a line")
                yield number, line.rstrip(b"\r\n")
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise UserError(f"{path}, line {number}: found damaged data ({_one_line(error)}), expected a complete file") from None


def _object(line: bytes, origin: str) -> Row:
    whole = _decoded(line, origin)
    return _checked(_parsed(lambda: json.loads(whole), origin), origin)


def _checked(row: Any, origin: str) -> Row:
    if not isinstance(row, dict):
        raise UserError(f"{origin}: found {type(row).__name__} at the top level, expected an object")
    return row


def _decoded(line: bytes, origin: str) -> str:
    try:
        return line.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        at = f"byte 0x{line[error.start]:02x} at column {error.start + 1}"
        raise UserError(f"{origin}: found {at}, expected UTF-8") from None


def _parsed(parse: Callable[[], Any], origin: str) -> Any:
    try:
        return parse()
    except json.JSONDecodeError as error:
        line = f"line {error.lineno}, " if error.lineno > 1 else ""  # of a list; an object is on one
        what = f"malformed JSON ({error.msg} at {line}column {error.colno})"
    except RecursionError:
        what = "JSON that is nested too deep to be read"
    except ValueError:  # the limit of Python's own reader of numbers
        what = f"a number of more than {sys.get_int_max_str_digits()} digits"
    raise UserError(f"{origin}: found {what}, expected an object")


# ---- tables


def _parquet(path: Path) -> Iterator[Placed]:
    import pyarrow.parquet

    def batches() -> Iterator[pyarrow.RecordBatch]:
        with pyarrow.parquet.ParquetFile(path) as file:
            yield from file.iter_batches(batch_size=BATCH)

    return _table_rows(path, "parquet", batches())


def _arrow(path: Path) -> Iterator[Placed]:
    """A file or a stream of Arrow's: what the datasets library saves."""
    import pyarrow

    def batches() -> Iterator[pyarrow.RecordBatch]:
        with pyarrow.memory_map(str(path)) as source:
            try:
                found = iter(pyarrow.ipc.open_stream(source))
            except pyarrow.ArrowInvalid:
                source.seek(0)
                file = pyarrow.ipc.open_file(source)
                found = (file.get_batch(index) for index in range(file.num_record_batches))
            for batch in found:
                yield from (batch.slice(start, BATCH) for start in range(0, batch.num_rows, BATCH))

    return _table_rows(path, "arrow", batches())


BATCH = 256
"""Rows of a table that are made Python's at one time."""


def _table_rows(path: Path, kind: str, batches: Iterable[pyarrow.RecordBatch]) -> Iterator[Placed]:
    import pyarrow

    number = 0
    try:
        for batch in batches:
            _refuse_wild_offsets(batch)
            for row in batch.to_pylist():
                number += 1
                yield f"{path}, row {number}", row
    except UnicodeDecodeError as error:
        where = f"{path}, between rows {number + 1} and {number + BATCH}"
        raise UserError(f"{where}: found byte 0x{error.object[error.start]:02x} in text, expected UTF-8") from None
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError) as error:
        where = f"{path}, row {number + 1}" if number else str(path)
        raise UserError(f"{where}: found a damaged {kind} file ({_one_line(error)}), expected a complete one") from None


def _refuse_wild_offsets(batch: pyarrow.RecordBatch) -> None:
    """Raises ArrowInvalid for texts and lists that lie outside the file: reading them would end the process."""
    import pyarrow

    for column in batch.columns:
        try:
            column.validate(full=True)
        except pyarrow.ArrowInvalid as error:
            if "UTF8" not in str(error):  # looked at behind the offsets; of text, the rows say where it is wrong
                raise


TEXTS = (".jsonl", ".ndjson", ".json", ".csv")
"""What may also be compressed."""

READERS: dict[str, Callable[[Path], Iterator[Placed]]] = {
    ".parquet": _parquet,
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".json": _json,
    ".csv": _csv,
    ".arrow": _arrow,
}


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:160]
