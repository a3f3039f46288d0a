import gzip
import json
import re
import struct

import pyarrow
import pyarrow.parquet
import pytest

from nemo_amft.config.schema import DataConfig
from nemo_amft.data.readers import EXPECTED
from nemo_amft.data.schemas import refusal
from nemo_amft.data.sources import load_examples
from nemo_amft.data.splits import hold_out, normalise, problem_key
from nemo_amft.tasks.math import MathConfig, MathTask
from nemo_amft.types import Example, UserError

SYSTEM, USER = {"role": "system", "content": "Think."}, {"role": "user", "content": "1+1?"}
TARGET = [{"role": "assistant", "content": "<think>\none and one\n</think>\n\\boxed{2}"}]


def openr1(**changes) -> dict:
    row = {
        "data_source": "made up",
        "prompt": [SYSTEM, USER],
        "target": TARGET,
        "reward_model": {"ground_truth": "2"},
        **changes,
    }
    return {key: value for key, value in row.items() if value is not Ellipsis}


def write_lines(path, *rows):
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows))
    return str(path)


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_the_openr1_schema_is_read_from_both_kinds_of_file(tmp_path, suffix):
    file = tmp_path / f"train.{suffix}"
    rows = [openr1(), openr1(prompt=[{"role": "user", "content": "2+2?"}], target=None)]
    write_lines(file, *rows) if suffix == "jsonl" else pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    first, second = load_examples(str(file))
    assert (first.id, first.messages, first.answer, first.source) == ("train/0", (SYSTEM, USER), "2", "made up")
    assert first.demonstration == TARGET[0]["content"]
    assert (second.id, second.demonstration) == ("train/1", None)
    assert second.metadata["origin"] == f"{file}, {'line' if suffix == 'jsonl' else 'row'} 2"


def test_values_of_a_csv_file_are_texts_that_may_hold_commas_quotes_and_lines(tmp_path):
    file = tmp_path / "a.csv.gz"
    written = 'problem,answer,demonstration\n"1, ""2""?",007,"First\nthen 7"\n\nLast?,8,\n'
    file.write_bytes(gzip.compress(written.encode()))
    first, last = load_examples(str(file))
    assert (first.messages[0]["content"], first.answer, first.demonstration) == ('1, "2"?', "007", "First\nthen 7")
    assert (last.answer, last.demonstration, last.metadata["origin"]) == ("8", None, f"{file}, line 5")


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("problem,answer\n1+1?,2\n1+2?\n", "line 3: found 1 values, expected 2, one a column"),
        ("problem,problem\n1+1?,2\n", "line 1: found the columns problem, problem, expected a name for each of its own"),
        ('problem,answer\n"1+1?,2\n', "line 2: found malformed CSV (unexpected end of data), expected comma-separated values"),
    ],
)
def test_a_bad_csv_file_is_named_with_its_line(tmp_path, written, message):
    (tmp_path / "a.csv").write_text(written)
    with pytest.raises(UserError) as error:
        load_examples(str(tmp_path / "a.csv"))
    assert str(error.value) == f"{tmp_path}/a.csv, {message}"


def test_gsm8k_s_own_format_loses_its_calculator_marks_and_gains_a_box(tmp_path):
    row = {"question": "How many?", "answer": "Half of 2,468 is 2468/2 = <<2468/2=1234>>1234.\n#### 1,234"}
    (example,) = load_examples(write_lines(tmp_path / "a.jsonl", row))
    assert (example.messages, example.answer) == (({"role": "user", "content": "How many?"},), "1234")
    assert example.demonstration == "Half of 2,468 is 2468/2 = 1234.\nThe answer is \\boxed{1234}."


def test_the_generic_schema_takes_text_or_messages_and_numbers_as_answers(tmp_path):
    rows = [{"prompt": "1+1?", "answer": 2, "demonstration": "2"}, {"prompt": [SYSTEM, USER], "answer": "2"}]
    first, second = load_examples(write_lines(tmp_path / "a.jsonl", *rows))
    assert (first.messages, first.answer, first.demonstration) == ((USER,), "2", "2")
    assert (second.messages, second.demonstration) == ((SYSTEM, USER), None)


def test_a_conversation_is_a_demonstration_of_all_its_turns_and_has_no_answer(tmp_path):
    said = [("system", "Think."), ("user", "1+1?"), ("assistant", "2"), ("user", "Sure?"), ("assistant", "Yes.")]
    messages = [{"role": role, "content": content} for role, content in said]
    file = write_lines(tmp_path / "a.jsonl", {"messages": messages[:3]}, {"messages": messages})
    one, several = load_examples(file, need="demonstration")
    assert (one.messages, one.answer, one.demonstration) == ((SYSTEM, USER), "", "2")
    assert (several.messages, several.demonstration) == ((SYSTEM, USER), ("2", "Sure?", "Yes."))
    with pytest.raises(UserError, match=r"line 1, answer: found nothing, .* can be imitated only: data\.demonstrations\)$"):
        load_examples(file)


def test_rows_without_a_demonstration_are_left_out_where_one_is_needed(tmp_path, caplog):
    file = write_lines(
        tmp_path / "a.jsonl", *({"prompt": "1+1?", "answer": "2", "demonstration": d} for d in ("2", None, "It is 2"))
    )
    assert [e.demonstration for e in load_examples(file, need="demonstration")] == ["2", "It is 2"]
    assert "1 rows without a demonstration left out" in caplog.text


def test_a_byte_order_mark_blank_lines_and_unusual_line_separators_are_no_errors(tmp_path):
    file = tmp_path / "a.jsonl"
    row = json.dumps({"prompt": "one\u2028two", "answer": "2"}, ensure_ascii=False)
    file.write_bytes(b"\xef\xbb\xbf" + f"{row}\n\n".encode())
    assert load_examples(str(file))[0].messages[0]["content"] == "one\u2028two"


def test_a_repeated_problem_is_dropped_and_said(tmp_path, caplog):
    file = write_lines(tmp_path / "a.jsonl", openr1(), openr1(prompt=[USER]), openr1())
    assert [example.id for example in load_examples(file)] == ["a/0", "a/1"]
    assert [r.getMessage() for r in caplog.records] == [
        f"{file}: 1 duplicate problems dropped (first: {file}, line 3 repeats {file}, line 1)"
    ]


def test_a_file_that_is_named_twice_is_read_as_one(tmp_path):
    file = write_lines(tmp_path / "a.jsonl", openr1())
    assert len(load_examples([file, file])) == 1


def test_another_answer_to_a_problem_is_dropped_and_both_rows_are_named(tmp_path, caplog):
    first = write_lines(tmp_path / "a.jsonl", openr1(), openr1(prompt=[USER]))
    second = write_lines(tmp_path / "b.jsonl", openr1(reward_model={"ground_truth": ["3", "4"]}))
    assert [example.answer for example in load_examples([first, second])] == ["2", "2"]
    (said,) = (record.getMessage() for record in caplog.records)
    assert said.endswith(f"(first: {second}, line 1 contradicts {first}, line 1, '3 or 4' against '2')")


BAD_ROWS = {
    "no prompt": (openr1(prompt=...), ", prompt: found nothing, expected text or a non-empty list of messages"),
    "null prompt": (openr1(prompt=None), ", prompt: found null, expected text or a non-empty list of messages"),
    "number for a prompt": (openr1(prompt=2), ", prompt: found 2, expected text or a non-empty list of messages"),
    "empty prompt": (openr1(prompt=[]), ", prompt: found [], expected text or a non-empty list of messages"),
    "text message": (openr1(prompt=["1+1?"]), ", prompt[0]: found '1+1?', expected an object with 'role' and 'content'"),
    "unknown role": (
        openr1(prompt=[SYSTEM, {"role": "tool", "content": "1+1?"}]),
        ", prompt[1].role: found 'tool', expected 'system', 'user' or 'assistant'",
    ),
    "no user": (openr1(prompt=[SYSTEM]), ", prompt[0].role: found 'system', expected 'user' in the last message"),
    "blank content": (
        openr1(prompt=[{"role": "user", "content": " "}]),
        ", prompt[0].content: found ' ', expected a non-empty text",
    ),
    "null content": (
        openr1(prompt=[{"role": "user", "content": None}]),
        ", prompt[0].content: found null, expected a non-empty text",
    ),
    "a text for a reward model": (
        openr1(reward_model="2"),
        ", reward_model: found '2', expected an object with 'ground_truth'",
    ),
    "no reward model": (
        openr1(reward_model=None),
        ", reward_model.ground_truth: found null, expected a non-empty text, a number or a list of them",
    ),
    "no ground truth": (
        openr1(reward_model={"style": "rule"}, target=None),
        ", reward_model.ground_truth: found nothing, expected a non-empty text, a number or a list of them",
    ),
    "empty ground truth": (
        openr1(reward_model={"ground_truth": ""}),
        ", reward_model.ground_truth: found '', expected a non-empty text, a number or a list of them",
    ),
    "ground truth of another type": (
        openr1(reward_model={"ground_truth": True}),
        ", reward_model.ground_truth: found True, expected a non-empty text, a number or a list of them",
    ),
    "number for a target": (openr1(target=2), ", target: found 2, expected a text, or messages that end with the assistant's"),
    "target of the user": (openr1(target=[USER]), ", target[0].role: found 'user', expected 'assistant'"),
    "null target content": (
        openr1(target=[{"role": "assistant", "content": None}]),
        ", target[0].content: found null, expected a non-empty text",
    ),
    "malformed JSON": ('{"prompt": [', ": found malformed JSON (Expecting value at column 13), expected an object"),
    "no object": ("[1]", ": found list at the top level, expected an object"),
}


@pytest.mark.parametrize(("row", "message"), BAD_ROWS.values(), ids=BAD_ROWS.keys())
def test_a_bad_row_gets_one_line_with_file_line_key_found_and_expected(tmp_path, row, message):
    file = write_lines(tmp_path / "a.jsonl", openr1(prompt=[USER]), row)
    with pytest.raises(UserError) as error:
        load_examples(file)
    assert str(error.value) == f"{file}, line 2{message}"


def test_a_bad_row_of_a_parquet_file_is_named_by_its_number(tmp_path):
    file = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([openr1(), openr1(), openr1(prompt=None)]), file)
    with pytest.raises(UserError) as error:
        load_examples(str(file))
    assert str(error.value) == f"{file}, row 3, prompt: found null, expected text or a non-empty list of messages"


def test_long_values_are_shortened_and_stay_on_one_line(tmp_path):
    file = write_lines(tmp_path / "a.jsonl", openr1(reward_model="a\nb" * 100))
    with pytest.raises(UserError) as error:
        load_examples(file)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < len(file) + 150


def damaged(tmp_path, name):
    """A file that cannot be used, and the exact line that says so."""
    file = tmp_path / name
    if name == "absent.parquet":
        return file, f"found no such file, expected one that ends with {EXPECTED}"
    if name.startswith("empty"):
        file.touch()
        return file, "found an empty file, expected at least one row"
    if name == "folder.jsonl":
        file.mkdir()
        return file, f"found a folder without data files, expected {EXPECTED}"
    if name == "blank.jsonl":
        file.write_text("\n\n")
        return file, "found no rows, expected at least one"
    if name == "problems.tsv":
        file.write_text("prompt,answer\n")
        return file, f"found extension '.tsv', expected {EXPECTED}"
    if name == "columns.jsonl":
        write_lines(file, {"text": "1+1=2", "id": 1})
        return file, refusal({"text": "1+1=2", "id": 1})
    assert name == "no_rows.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"prompt": pyarrow.array([], pyarrow.string())}), file)
    return file, "found no rows, expected at least one"


@pytest.mark.parametrize(
    "name",
    [
        "absent.parquet",
        "empty.jsonl",
        "empty.parquet",
        "folder.jsonl",
        "blank.jsonl",
        "problems.tsv",
        "columns.jsonl",
        "no_rows.parquet",
    ],
)
def test_a_bad_file_gets_one_line(tmp_path, name):
    file, message = damaged(tmp_path, name)
    with pytest.raises(UserError) as error:
        load_examples(str(file))
    assert str(error.value) == f"{file}: {message}"


@pytest.mark.parametrize("kept", [0.1, 0.5, 0.99])
def test_a_half_written_parquet_file_is_called_damaged(tmp_path, kept):
    file = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([openr1(answer=str(i)) for i in range(1000)]), file)
    file.write_bytes(file.read_bytes()[: int(kept * file.stat().st_size)])
    with pytest.raises(
        UserError, match=f"^{re.escape(str(file))}: found a damaged parquet file .*, expected a complete one$"
    ) as error:
        load_examples(str(file))
    assert "\n" not in str(error.value)


def test_bytes_that_are_no_utf_8_are_named_with_line_and_column(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_bytes(json.dumps(openr1()).encode() + b'\n{"prompt": "caf\xe9"}\n')
    with pytest.raises(UserError) as error:
        load_examples(str(file))
    assert str(error.value) == f"{file}, line 2: found byte 0xe9 at column 16, expected UTF-8"


def test_bytes_that_are_no_utf_8_inside_parquet_are_named_with_their_rows(tmp_path):
    file = tmp_path / "a.parquet"
    good = pyarrow.array(["1+1?", "2+2?"])
    bad = pyarrow.StringArray.from_buffers(2, good.buffers()[1], pyarrow.py_buffer(b"1+1?2\xe92?"))
    pyarrow.parquet.write_table(pyarrow.table({"prompt": bad, "answer": ["2", "4"]}), file)
    with pytest.raises(UserError) as error:
        load_examples(str(file))
    assert str(error.value) == f"{file}, between rows 1 and 256: found byte 0xe9 in text, expected UTF-8"


def test_texts_that_lie_outside_an_arrow_file_are_refused_and_not_read(tmp_path):
    """Reading them would end the process, without a word."""
    file, far = tmp_path / "a.arrow", pyarrow.py_buffer(struct.pack("<3i", 0, 2**30, 8))
    bad = pyarrow.StringArray.from_buffers(2, far, pyarrow.py_buffer(b"1+1?2+2?"))
    table = pyarrow.table({"prompt": bad, "answer": ["2", "4"]})
    with pyarrow.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table)
    with pytest.raises(UserError, match=f"^{re.escape(str(file))}: found a damaged arrow file .*, expected a complete one$"):
        load_examples(str(file))


def test_gsm8k_without_its_mark_is_refused(tmp_path):
    rows = [{"question": "How many?", "answer": answer} for answer in ("Two.\n#### 2", "B")]
    file = write_lines(tmp_path / "a.jsonl", *rows)
    with pytest.raises(UserError) as error:
        load_examples(file)
    assert str(error.value) == f"{file}, line 2, answer: found 'B', expected steps that end with '#### N'"


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("Elliott/Openr1-Math-46k-8192", ("Elliott/Openr1-Math-46k-8192", None, "validation")),
        ("openai/gsm8k:main", ("openai/gsm8k", "main", "validation")),
        ("openai/gsm8k::test", ("openai/gsm8k", None, "test")),
    ],
)
def test_hub_ids_are_loaded_through_the_datasets_library(monkeypatch, source, expected):
    import datasets

    def load_dataset(name, config, split):
        assert (name, config, split) == expected
        return [openr1(), openr1(prompt=2)]

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(UserError) as error:
        load_examples(source, "validation")
    name, _, split = expected
    assert str(error.value) == f"{name} {split}, row 2, prompt: found 2, expected text or a non-empty list of messages"


def test_a_hub_failure_is_one_line(monkeypatch):
    import datasets

    def load_dataset(*args, **kwargs):
        raise ConnectionError("no route\nto the hub")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(UserError) as error:
        load_examples("some/set")
    assert str(error.value) == "some/set: cannot load split 'train' from the hub (ConnectionError: no route to the hub)"


def problems(*texts: str) -> list[Example]:
    return [Example(str(index), (SYSTEM, {"role": "user", "content": text}), "0") for index, text in enumerate(texts)]


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("What is $x$?", "what is x", True),
        ("a,b", "a  b\n", True),
        ("3-2", "3+2", False),
        ("3.5", "35", False),
        ("x < 3", "x > 3", False),
        ("...", "?!", False),
    ],
)
def test_normalised_texts_fold_case_space_and_punctuation_but_no_signs(one, other, same):
    assert (problem_key(problems(one)[0]) == problem_key(problems(other)[0])) is same
    assert normalise(normalise(one)) == normalise(one)


def test_a_held_out_problem_is_nowhere_in_the_rest_even_reworded_in_punctuation():
    examples = problems(*(text for index in range(100) for text in (f"Find {index}.", f"find  {index}")))
    rest, held = hold_out(examples, 20, seed=1)
    assert (len(held), len(rest)) == (20, 160)
    assert not {problem_key(e) for e in rest} & {problem_key(e) for e in held}


def test_what_is_held_out_depends_on_texts_and_seed_and_not_on_the_order_of_rows():
    examples = problems(*(f"Find {index}." for index in range(100)))
    held = {problem_key(e) for e in hold_out(examples, 20, seed=1)[1]}
    assert {problem_key(e) for e in hold_out(examples[::-1], 20, seed=1)[1]} == held
    assert {problem_key(e) for e in hold_out(examples, 20, seed=2)[1]} != held


def test_problems_of_the_test_set_are_not_held_out():
    examples = problems(*(f"Find {index}." for index in range(30)))
    rest, held = hold_out(examples, 10, seed=1, avoid=examples[:20])
    assert held == examples[20:]
    assert rest == examples[:20]


def test_holding_out_everything_is_refused():
    with pytest.raises(
        UserError, match=r"^data\.validation_size: found 3, expected less than the 3 distinct problems of data\.train$"
    ):
        hold_out(problems("a", "b", "c"), 3, seed=1)


def math_task(tmp_path, config=None, **sources) -> MathTask:
    """`sources` maps a split to the texts of its problems."""
    files = {
        split: write_lines(
            tmp_path / f"{split}.jsonl", *(openr1(prompt=[SYSTEM, {"role": "user", "content": t}]) for t in texts)
        )
        for split, texts in sources.items()
    }
    return MathTask(config or MathConfig(), DataConfig(**files, validation_size=2), seed=1)


@pytest.mark.parametrize(("other", "line"), [("train", 1), ("test", 2)])
def test_validation_problems_that_train_or_test_also_has_are_refused_by_name(tmp_path, other, line):
    text = "A, b?" if other == "train" else "F."
    with pytest.raises(UserError) as error:
        math_task(tmp_path, train=["a b", "c"], validation=["e", text], test=["d", "f"]).examples("train")
    assert str(error.value) == (
        f"{tmp_path}/validation.jsonl, line 2: found a problem that data.{other} also has "
        f"({tmp_path}/{other}.jsonl, line {line}), 1 such in all, expected data.validation disjoint from it: {text!r}"
    )


def test_without_files_d_val_is_held_out_of_train_and_serves_as_test(tmp_path):
    task = math_task(tmp_path, train=["a", "b", "c", "d", "e"])
    assert (len(task.examples("train")), len(task.examples("validation"))) == (3, 2)
    assert task.examples("test") == task.examples("validation")


@pytest.mark.parametrize(("prompt", "roles"), [(None, ["system", "user"]), ("", ["user"]), ("Go.", ["system", "user"])])
def test_the_system_message_can_be_replaced_or_removed(tmp_path, prompt, roles):
    example = math_task(tmp_path, MathConfig(system_prompt=prompt), train=["a", "b", "c"]).examples("train")[0]
    assert [message["role"] for message in example.messages] == roles
    assert prompt in (None, "") or example.messages[0]["content"] == prompt


def test_mathematics_needs_training_data():
    with pytest.raises(UserError, match=r"^data\.train: found null"):
        MathTask(MathConfig(), DataConfig(), seed=1)
