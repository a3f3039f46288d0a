"""Files of problems: every row is read or accounted for, and its prompt and answer are the row's."""

from __future__ import annotations

import bz2
import contextlib
import csv
import functools
import gzip
import io
import json
import logging
import lzma
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from nemo_amft.config import typed
from nemo_amft.config.typed import Location
from nemo_amft.data.places import is_local, missing, name_of, rows_of
from nemo_amft.data.sources import load_examples
from nemo_amft.types import UserError
from tests.fuzz.kinds import Kind, expect
from tests.fuzz.noise import TEXTS, VALUES, damaged, spoilt

ENDINGS = (".jsonl", ".ndjson", ".json", ".jsonl.gz", ".json.gz", ".jsonl.bz2", ".jsonl.xz", ".jsonl.zst", ".parquet", ".arrow",
           ".csv", ".csv.gz")  # fmt: skip


@dataclass(frozen=True)
class Question:
    """A row, and what it says whatever its schema: the prompt's end and the answer, where these are certain."""

    row: Any
    prompt: str | None = None
    answer: str | None = None


_say = st.text(alphabet="abc xyz 0123456789+-=?\u00e9\u6570\n", min_size=1, max_size=20).filter(str.strip)
_golds = st.integers(-1000, 10**6).map(str) | st.sampled_from(("1/2", "x+1", r"\frac{1}{3}", "Paris", "(1,2)", "0.5"))


@st.composite
def _row(draw: st.DrawFn) -> Question:
    prompt, gold = draw(_say), draw(_golds)
    schema = draw(st.sampled_from(("free", "free", "worked", "choice", "chat", "verl", "sharegpt", "demonstration", "noise")))
    if schema == "free":
        row: Any = {draw(st.sampled_from(("problem", "prompt", "query"))): prompt, "answer": gold}
        if draw(st.booleans()):
            row["solution"] = draw(_say)
    elif schema == "worked":
        gold = str(draw(st.integers(0, 9999)))
        row = {"question": prompt, "answer": f"{draw(_say)}\n#### {gold}"}
    elif schema == "choice":
        row = {"question": prompt, "choices": [f"o{i}" for i in range(4)], "answer": draw(st.integers(0, 3))}
        return Question(row, None, None)
    elif schema == "chat":
        row = {"messages": [{"role": "user", "content": prompt}, {"role": "assistant", "content": gold}], "answer": gold}
    elif schema == "verl":
        row = {"prompt": [{"role": "user", "content": prompt}], "reward_model": {"ground_truth": gold}}
    elif schema == "sharegpt":
        row = {"conversations": [{"from": "human", "value": prompt}, {"from": "gpt", "value": gold}]}
        return Question(row, prompt, "")
    elif schema == "demonstration":
        row = {"prompt": prompt, "completion": draw(_say)}
        return Question(row, prompt, "")
    else:
        return Question(draw(st.dictionaries(st.sampled_from(("prompt", "answer", "x")) | TEXTS, VALUES, max_size=4)))
    if draw(st.integers(0, 3)):
        return Question(row, prompt, gold)
    return Question(draw(spoilt(row, most=2)))


@dataclass(frozen=True)
class Set:
    """A file of questions."""

    ending: str
    questions: tuple[Question, ...]
    unique: bool
    need: str


_sets = st.builds(
    Set,
    st.sampled_from(ENDINGS),
    st.lists(_row(), min_size=1, max_size=5).map(lambda rows: (*rows, *rows[:1]) if len(rows) == 3 else tuple(rows)),
    st.booleans(),
    st.sampled_from(("answer", "demonstration")),
)


def _packed(ending: str, text: bytes) -> bytes:
    import pyarrow

    pack: dict[str, Callable[[bytes], bytes]] = {
        "gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress,
        "zst": lambda content: pyarrow.compress(content, codec="zstd", asbytes=True),
    }  # fmt: skip
    return pack.get(ending.rpartition(".")[2], lambda content: content)(text)


def content_of(ending: str, rows: list[Any]) -> bytes | None:
    """A file of `rows`; None where a table cannot have them."""
    if ending in (".parquet", ".arrow"):
        import pyarrow
        import pyarrow.parquet

        sink = pyarrow.BufferOutputStream()
        try:
            table = pyarrow.Table.from_pylist(rows)
            if not table.num_columns:
                return None
            if ending == ".parquet":
                pyarrow.parquet.write_table(table, sink)
            else:
                with pyarrow.ipc.new_stream(sink, table.schema) as writer:
                    writer.write_table(table)
        except (pyarrow.ArrowException, TypeError, ValueError, OverflowError, AttributeError):
            return None
        return sink.getvalue().to_pybytes()
    if ending.startswith(".csv"):
        return _csv(ending, rows)
    if ending.startswith(".json") and not ending.startswith(".jsonl"):
        return _packed(ending, json.dumps(rows, indent=1).encode())
    return _packed(ending, "".join(json.dumps(row) + "\n" for row in rows).encode())


def _csv(ending: str, rows: list[Any]) -> bytes | None:
    """Texts and whole numbers only, under the names of the first row."""
    if not all(isinstance(row, dict) and all(isinstance(v, str | int) for v in row.values()) for row in rows):
        return None
    columns = list(dict.fromkeys(name for row in rows for name in row))
    if not columns or any("\0" in text or "\r" in text for row in rows for text in (*row, *map(str, row.values()))):
        return None
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return _packed(ending, text.getvalue().encode(errors="surrogatepass"))


class _Counted(logging.Handler):
    """Adds up the rows that warnings say were left out."""

    def __init__(self) -> None:
        super().__init__()
        self.dropped = 0

    def emit(self, record: logging.LogRecord) -> None:
        record.getMessage()
        self.dropped += record.args[1]  # type: ignore[index, operator]


@contextlib.contextmanager
def counted() -> Iterator[_Counted]:
    handler, log = _Counted(), logging.getLogger("nemo_amft.data.sources")
    log.addHandler(handler)
    before, log.propagate = log.propagate, False
    try:
        yield handler
    finally:
        log.removeHandler(handler)
        log.propagate = before


def _check_set(given: Set) -> None:
    rows = [question.row for question in given.questions]
    content = content_of(given.ending, rows)
    if content is None:
        return
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        file = Path(folder) / f"set{given.ending}"
        file.write_bytes(content)
        with counted() as found:
            examples = load_examples(str(file), unique=given.unique, need=given.need)  # type: ignore[arg-type]
    total = len(examples) + found.dropped
    expect(total == len(rows), f"{len(examples)} examples and {found.dropped} rows left out of {len(rows)}")
    for example in examples:
        number = int(example.metadata["origin"].rpartition(" ")[2])
        if given.ending.startswith(".csv"):
            if content.count(b"\n") > len(rows) + 1 or content[:2] == b"\x1f\x8b":
                continue  # a row of several lines: lines and rows are counted apart
            number -= 1
        question = given.questions[number - 1]
        if question.prompt is not None:
            said = example.messages[-1]["content"].rstrip("\n")
            expect(question.prompt.strip() in said, f"row {number}: the prompt is {said!r}, written {question.prompt!r}")
        if question.answer and given.need == "answer":  # for a demonstration, steps with their answer may be one
            expect(example.answer.strip() == question.answer, f"row {number}: {example.answer!r}, written {question.answer!r}")
        if given.need == "demonstration":
            expect(example.demonstration, f"row {number}: an empty demonstration")
        else:
            expect(example.answer.strip(), f"row {number}: an empty answer")


@functools.cache
def _good(ending: str) -> bytes:
    rows = [{"problem": f"{i}+{i}=", "answer": str(2 * i), "solution": f"{i} and {i}"} for i in range(1, 6)]
    content = content_of(ending, rows)
    assert content is not None, ending
    return content


_broken = st.sampled_from(ENDINGS).flatmap(lambda ending: st.tuples(st.just(ending), damaged(_good(ending))))
_signs = st.text(alphabet='{}[]":, \n\r\t\\ue0d8antrlsf01.-\ufeff\u2028', max_size=40)
_words = ("{", "}", '"problem": ', '"answer": ', '"1+1="', "2", ", ", "\n", "[", "]", "\ufeff", " ", "null", "-", "1e999", '"')
_sound = st.just('{"problem": "1+1=", "answer": "2"}')
_phrases = st.lists(st.sampled_from(_words) | _sound, max_size=8).map("".join)
_raw = st.tuples(
    st.sampled_from((".jsonl", ".json", ".ndjson")),
    (_signs | _phrases).map(lambda text: text.encode()) | st.binary(max_size=30),
)


def _check_bytes(given: tuple[str, bytes]) -> None:
    ending, content = given
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder, counted():
        file = Path(folder) / f"set{ending}"
        file.write_bytes(content)
        examples = load_examples(str(file))
    expect(examples, "no example, and no refusal")
    expect(all(example.answer.strip() and example.messages for example in examples), "an example without prompt or answer")


_names = st.text(alphabet="ab/.:*?[]~ \\-_é", max_size=12) | st.builds(
    lambda a, b, c: f"{a}:{b}:{c}", st.sampled_from(("org/set", "set", ".", "/nowhere", "")), TEXTS, TEXTS
)


def _check_place(name: str) -> None:
    """A source that is not there is refused, or left to the hub, which nothing reaches here."""
    folder = Path(typed.at_home(name.partition(":")[0])).resolve()
    if folder.is_dir() and not folder.is_relative_to(Path.cwd()):
        return  # of this machine, with whatever it holds
    name = typed.convert(name, Location, "data.train")  # as the configuration takes it
    name_of(name)
    if is_local(name):
        line = missing(name)
        if line is not None:
            raise UserError(line)
    for rows in rows_of(name, "train"):
        next(rows, None)


KINDS = (
    Kind("files of problems", _sets, _check_set, lambda given: ("set",)),
    Kind("damaged files of problems", _broken, _check_bytes, lambda given: ("set",)),
    Kind("texts for files of problems", _raw, _check_bytes, lambda given: ("set",), round=200),
    Kind("names of sources", _names, _check_place, round=50),
)
