"""Where problems come from: files of every kind, globs, lists, folders; and files that nothing can be read from."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma

import pyarrow
import pyarrow.parquet
import pytest

from nemo_amft.config.load import load
from nemo_amft.data import readers
from nemo_amft.data.places import is_local, missing
from nemo_amft.data.sources import load_examples
from nemo_amft.types import UserError


def rows(*names):
    return [{"problem": f"What is {name}?", "answer": name, "extra": None} for name in names]


def lines(*names):
    return "".join(json.dumps(row) + "\n" for row in rows(*names)).encode()


def parquet(path, *names):
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows(*names)), path)


def answers(source, split="train"):
    return [example.answer for example in load_examples(source, split)]


def zstandard(path, content):
    with pyarrow.CompressedOutputStream(str(path), "zstd") as file:
        file.write(content)


WRITERS = {
    "rows.jsonl": lambda path: path.write_bytes(lines("a", "b")),
    "rows.json": lambda path: path.write_text(json.dumps(rows("a", "b"), indent=2)),
    "lines.json": lambda path: path.write_bytes(b"\xef\xbb\xbf" + lines("a", "b")),
    "rows.jsonl.gz": lambda path: path.write_bytes(gzip.compress(lines("a")) + gzip.compress(lines("b"))),
    "rows.json.gz": lambda path: path.write_bytes(gzip.compress(json.dumps(rows("a", "b")).encode())),
    "rows.jsonl.zst": lambda path: zstandard(path, lines("a", "b")),
    "rows.jsonl.bz2": lambda path: path.write_bytes(bz2.compress(lines("a", "b"))),
    "rows.jsonl.xz": lambda path: path.write_bytes(lzma.compress(lines("a", "b"))),
    "rows.parquet": lambda path: parquet(path, "a", "b"),
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_kind_of_file_is_read(tmp_path, name):
    WRITERS[name](tmp_path / name)
    examples = load_examples(str(tmp_path / name))
    assert [example.answer for example in examples] == ["a", "b"]
    assert [example.id for example in examples] == [f"{name.partition('.')[0]}/0", f"{name.partition('.')[0]}/1"]


@pytest.mark.parametrize("stream", [True, False])
def test_both_of_arrows_formats_are_read(tmp_path, stream):
    table = pyarrow.Table.from_pylist(rows("a", "b"))
    with (pyarrow.ipc.new_stream if stream else pyarrow.ipc.new_file)(tmp_path / "a.arrow", table.schema) as file:
        file.write_table(table)
    assert answers(str(tmp_path / "a.arrow")) == ["a", "b"]


def test_globs_and_lists_are_read_in_order_as_one_set(tmp_path):
    for name in "ba":
        (tmp_path / f"{name}.jsonl").write_bytes(lines(name))
    parquet(tmp_path / "c.parquet", "c", "a")
    assert answers(str(tmp_path / "*.jsonl")) == ["a", "b"]
    examples = load_examples([str(tmp_path / "c.parquet"), str(tmp_path / "*.jsonl")])
    assert [example.answer for example in examples] == ["c", "a", "b"]
    assert len({example.id for example in examples}) == 3


def test_a_folder_of_the_hub_has_its_splits_in_the_names_of_its_files(tmp_path):
    for name, found in {"train-00000-of-00002": "a", "train-00001-of-00002": "b", "test-00000-of-00001": "c"}.items():
        parquet(tmp_path / "data" / f"{name}.parquet", found)
    (tmp_path / "README.md").write_text("# A set\n")
    assert answers(str(tmp_path)) == ["a", "b"]
    assert answers(str(tmp_path), "test") == ["c"]
    assert answers(f"{tmp_path}::test", "validation") == ["c"]
    with pytest.raises(UserError, match=r"found the splits train, test, expected 'validation' among them \(or .*::SPLIT\)"):
        answers(str(tmp_path), "validation")


def test_a_folder_of_the_hub_may_have_several_configurations(tmp_path):
    for name in ("main", "socratic"):
        parquet(tmp_path / name / "train-00000-of-00001.parquet", name)
    listed = "".join(f"- config_name: {name}\n  data_files: {name}/*.parquet\n" for name in ("main", "socratic"))
    (tmp_path / "README.md").write_text(f"---\nconfigs:\n{listed}---\n")
    assert answers(f"{tmp_path}:socratic") == ["socratic"]
    with pytest.raises(UserError, match=r"main.*socratic.*expected FOLDER or FOLDER:CONFIG:SPLIT of one$") as raised:
        answers(str(tmp_path))
    assert "\n" not in str(raised.value)


def test_a_folder_whose_files_name_no_split_is_read_for_any(tmp_path):
    parquet(tmp_path / "part.parquet", "a")
    assert answers(str(tmp_path), "test") == ["a"]


@pytest.mark.parametrize("several", [False, True])
def test_what_the_datasets_library_saved_is_read(tmp_path, several):
    import datasets

    saved = datasets.Dataset.from_list(rows("a", "b")).with_format("numpy")
    (datasets.DatasetDict(train=saved, test=saved) if several else saved).save_to_disk(tmp_path / "saved")
    examples = load_examples(str(tmp_path / "saved"))
    assert [example.answer for example in examples] == ["a", "b"]
    assert examples[1].metadata["origin"] == f"{tmp_path / 'saved'}{'/train' if several else ''}, row 2"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"problem": "?", "answer": ' + b"7" * 5000 + b"}", "line 2: found a number of more than 4300 digits"),
        ("a.jsonl", b'{"problem": ' + b"[" * 100_000, "line 2: found JSON that is nested too deep to be read"),
        ("a.jsonl", b'{"problem": "\\ud83d", "answer": "1"}', "line 2, problem: found '\\ud83d', expected a text without lone"),
        ("a.jsonl", b'{"problem": "?", "answer": NaN}', "line 2, answer: found nan, expected a finite number"),
        ("a.jsonl", b"\0" * 100, "line 2: found malformed JSON (Expecting value at column 1)"),
        ("a.json", b'[{"problem": "?", "answer": "1"} {"a": 1}]', "row 1: found '{' after it, expected ',' or ']'"),
        ("a.json", b'[{"problem": "?", "answer": "1"}, [1]]', "row 2: found list at the top level, expected an object"),
        ("a.json", b'[{"problem": "?", "answer": "1"}', "row 1: found '' after it, expected ',' or ']'"),
        ("a.json", b"[]", "found no rows, expected at least one"),
        ("a.json", b'[{"problem": "?", "answer": "1"}] x', "row 1: found 'x' after the list, expected its end"),
        ("a.jsonl.gz", gzip.compress(lines(*"abcdef"))[:-20], "found damaged data"),
        ("a.jsonl.zst", b"not compressed", "found damaged data"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_read_is_one_line_with_its_row(tmp_path, name, content, message):
    file = tmp_path / name
    file.write_bytes((lines("a") if name == "a.jsonl" else b"") + content)
    with pytest.raises(UserError) as raised:
        load_examples(str(file))
    assert str(raised.value).startswith(str(file))
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_line_without_an_end_is_not_read_for_ever(tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "MAX_LINE_BYTES", 2**20)
    (tmp_path / "a.jsonl").write_bytes(lines("a") + b'{"problem": "' + b"x" * 2**21)
    with pytest.raises(UserError, match="line 2: found a line of more than 1 MiB, expected an object a line"):
        load_examples(str(tmp_path / "a.jsonl"))


def test_a_half_written_zstandard_file_is_called_damaged(tmp_path):
    import random

    numbers = [str(random.Random(i).random()) for i in range(2000)]
    zstandard(tmp_path / "a.jsonl.zst", lines(*numbers))
    content = (tmp_path / "a.jsonl.zst").read_bytes()
    (tmp_path / "a.jsonl.zst").write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=r"line \d+: found (damaged data|malformed JSON)"):
        load_examples(str(tmp_path / "a.jsonl.zst"))


@pytest.mark.parametrize(
    ("source", "local"),
    [
        ("openai/gsm8k", False),
        ("openai/gsm8k:main:test", False),
        ("set-1.5", False),
        ("a/b/c", True),
        ("./set", True),
        ("rows.jsonl.zst", True),
        ("data/train-*.parquet", True),
    ],
)
def test_a_name_is_a_hub_id_or_a_place_on_this_machine(source, local):
    assert is_local(source) is local
    assert (missing(source) is not None) is local


def test_sources_that_are_not_there_are_found_before_anything_is_built(tmp_path):
    parquet(tmp_path / "a.parquet", "a")
    command = ["--config-name", "quickstart", "task=math_plain", "trainer.devices=1", "model.tensor_model_parallel_size=1"]
    there = load([*command, f"data.train=[{tmp_path}/a.parquet,{tmp_path}]", f"data.test={tmp_path}::train"])
    assert there.data.train == (f"{tmp_path}/a.parquet", str(tmp_path))
    with pytest.raises(UserError, match=r"data\.train: expected a file, .*, found '.*/b\*\.jsonl', which does not exist"):
        load([*command, f"data.train=[{tmp_path}/a.parquet,{tmp_path}/b*.jsonl]"])
    with pytest.raises(UserError, match=r"data\.test: found an empty list, expected at least one source"):
        load([*command, f"data.train={tmp_path}", "data.test=[]"])
