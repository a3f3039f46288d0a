"""Benchmark sets: every schema of the registry, options in a fixed order, prompts, and what must be refused."""

from __future__ import annotations

import json
import logging
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemo_amft.config.load import load
from nemo_amft.data import schemas
from nemo_amft.data.schemas import CHOICE_INSTRUCTION, RowError
from nemo_amft.evaluate import completed
from nemo_amft.evaluation.config import EvaluationConfig
from nemo_amft.evaluation.leakage import leaked
from nemo_amft.evaluation.problems import keys, load_benchmark, load_benchmarks, problem_hash, wanted
from nemo_amft.evaluation.registry import BENCHMARKS
from nemo_amft.evaluation.run import mathematics, refuse_long_prompts
from nemo_amft.tasks.math import MathConfig
from nemo_amft.types import Example, UserError

PLAIN = MathConfig(thinking=False, system_prompt="Think.")

ROWS = {
    "problem": ({"problem": "What is 1 + 1?", "answer": 2.0, "solution": "Count."}, "2.0"),
    "plain": ({"question": "What is 1 + 1?", "answer": "2"}, "2"),
    "olympiad": ({"question": "Roots?", "final_answer": ["$1$", "$-1$"], "unit": None}, "$1$\x1e$-1$"),
    "gsm8k": ({"question": "What is 1 + 1?", "answer": "Add: <<1+1=2>>2\n#### 2"}, "2"),
}
CHOICES = {
    "arc": {"id": "1", "question": "Which is red?", "choices": {"text": ["sky", "rose", "leaf"], "label": ["1", "2", "3"]},
            "answerKey": "2"},
    "gpqa": {"Question": "Which is red?", "Correct Answer": "rose", "Incorrect Answer 1": "sky", "Incorrect Answer 2": "leaf",
             "Incorrect Answer 3": "snow"},
    "mmlu_pro": {"question_id": 1, "question": "Which is red?", "options": ["sky", "leaf", "snow", "rose"], "answer": "D",
                 "answer_index": 3, "category": "botany"},
}  # fmt: skip


def _file(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.mark.parametrize("name", ROWS)
def test_rows_with_a_free_answer(name):
    row, answer = ROWS[name]
    found = getattr(schemas, name)(row)
    assert (found.answer, found.choice) == (answer, False)
    assert found.messages[-1]["content"] == row.get("problem", row.get("question"))


@pytest.mark.parametrize("name", CHOICES)
def test_the_gold_letter_goes_with_its_option(name):
    found = getattr(schemas, name)(CHOICES[name])
    text = found.messages[-1]["content"]
    assert found.choice
    assert text.startswith("Which is red?\n\nA) ")
    assert text.endswith(f"\n\n{CHOICE_INSTRUCTION}")
    assert f"\n{found.answer}) rose\n" in text
    assert found.category == ("botany" if name == "mmlu_pro" else "")


def _lettered(question: str, options: list[str], gold: int) -> tuple[list[str], str]:
    row = {"question": question, "options": options, "answer": "ABCDEFGHIJ"[gold]}
    found = schemas.mmlu_pro(row)
    lines = found.messages[-1]["content"].removeprefix(question.strip()).split("\n\n")[1].split("\n")
    return [line[3:] for line in lines], found.answer


@given(st.integers(2, 10).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n - 1))), st.integers())
def test_options_are_the_same_in_another_order_and_the_answer_follows(sizes, number):
    n, gold = sizes
    options = [f"option {i}" for i in range(n)]
    shown, letter = _lettered(f"Question {number}?", options, gold)
    assert sorted(shown) == sorted(options)
    assert shown["ABCDEFGHIJ".index(letter)] == options[gold]
    assert _lettered(f"Question {number}?", options, gold) == (shown, letter)  # in every run


def test_the_gold_option_may_stand_anywhere():
    letters = Counter(_lettered(f"Question {i}?", ["a", "b", "c", "d"], 0)[1] for i in range(800))
    assert set(letters) == set("ABCD")
    assert all(150 <= count <= 250 for count in letters.values()), letters  # 200 expected, 12 the standard deviation


def test_the_order_of_options_is_frozen():
    # Another order would be another benchmark: scores of older versions could not be compared.
    shown, letter = _lettered("Which is red?", ["sky", "leaf", "snow", "rose"], 3)
    assert (shown, letter) == FROZEN


FROZEN = (["sky", "snow", "leaf", "rose"], "D")


@pytest.mark.parametrize(
    ("schema", "change", "message"),
    [
        ("mmlu_pro", {"answer": "E"}, "answer: found 'E', expected a letter from A to D"),
        ("mmlu_pro", {"options": ["one"]}, "options: found ['one'], expected a list of 2 to 26 options"),
        ("mmlu_pro", {"options": ["one", ""]}, "options[1]: found '', expected a non-empty text"),
        ("arc", {"answerKey": "A"}, "answerKey: found 'A', expected one of 1, 2, 3"),
        ("arc", {"choices": ["a", "b"]}, "choices: found ['a', 'b'], expected an object with 'text' and 'label'"),
        ("arc", {"choices": {"text": ["a", "b"], "label": ["A"]}}, "choices.label: found ['A'], expected a list of 2 labels"),
        ("gpqa", {"Incorrect Answer 2": None}, "Incorrect Answer 2: found null, expected a non-empty text"),
    ],
)
def test_a_bad_row_is_named(schema, change, message):
    with pytest.raises(RowError) as raised:
        getattr(schemas, schema)(CHOICES[schema] | change)
    assert str(raised.value) == message


@pytest.mark.parametrize(
    ("golds", "message"),
    [
        ([], "final_answer: found [], expected a non-empty list of answers"),
        ([float("nan")], "final_answer[0]: found nan, expected a non-empty text or a number"),
        (["1", "2\x1e3"], "final_answer[1]: found '2\\x1e3', expected an answer without the characters U+001E and U+001F"),
    ],
)
def test_golds_that_cannot_be_told_apart_are_refused(golds, message):
    with pytest.raises(RowError) as raised:
        schemas.olympiad({"question": "?", "final_answer": golds})
    assert str(raised.value) == message


# ---- the registry


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_file_in_the_hubs_columns_is_read_as_the_hub_is(name, tmp_path):
    known = BENCHMARKS[name]
    row = CHOICES.get(known.schema.__name__) or ROWS[known.schema.__name__][0]
    found = load_benchmark(name, _file(tmp_path / "rows.jsonl", row), EvaluationConfig(), PLAIN)
    assert [e.answer for e in found.examples] == [known.schema(row).answer]
    assert found.graders == (("choice",) if known.choice else ("oat", "math_verify"))
    assert found.samples == known.samples
    assert found.examples[0].id == f"{name}/0"


def test_the_published_protocol():
    assert {name: (b.problems, b.samples) for name, b in BENCHMARKS.items()} == {
        "aime24": (30, 32), "aime25": (30, 32), "amc": (83, 32), "math500": (500, 1), "minerva": (272, 1),
        "olympiadbench": (675, 1), "arc_c": (1172, 1), "gpqa_diamond": (198, 1), "mmlu_pro": (12032, 1), "gsm8k": (1319, 1),
    }  # fmt: skip


def test_rows_with_prompts_of_their_own_are_left_as_they_are(tmp_path):
    prompt = [{"role": "system", "content": "Data's own."}, {"role": "user", "content": "Red?\n\n1) sky\n2) rose\n"}]
    row = {"prompt": prompt, "reward_model": {"ground_truth": "2"}, "data_source": "arc_c"}
    file = _file(tmp_path / "arc.jsonl", row)
    found = load_benchmark("arc_c", file, EvaluationConfig(), MathConfig())
    assert found.examples[0].messages == tuple(prompt)
    assert (found.examples[0].answer, found.graders) == ("2", ("choice",))
    replaced = load_benchmark("arc_c", file, EvaluationConfig(), PLAIN).examples[0].messages
    assert replaced == ({"role": "system", "content": "Think."}, prompt[1])


def test_repeated_rows_are_problems_of_their_own(tmp_path):
    row = ROWS["problem"][0]
    found = load_benchmark("mine", _file(tmp_path / "mine.jsonl", row, row, row | {"answer": 3}), EvaluationConfig(), PLAIN)
    assert [e.id for e in found.examples] == ["mine/0", "mine/1", "mine/2"]
    assert found.keys[1] == f"{found.keys[0]}-2"
    assert len(set(found.keys)) == 3


def test_a_set_of_ones_own(tmp_path):
    choice = load_benchmark("mine", _file(tmp_path / "c.jsonl", CHOICES["mmlu_pro"]), EvaluationConfig(samples=3), PLAIN)
    assert (choice.graders, choice.samples, choice.title) == (("choice",), 3, "mine")
    free = load_benchmark("mine", _file(tmp_path / "f.jsonl", *[ROWS["gsm8k"][0]] * 4), EvaluationConfig(max_problems=2), PLAIN)
    assert (free.graders, len(free.examples)) == (("oat", "math_verify"), 2)


def test_the_system_message_and_the_source_do_not_name_a_problem():
    one = Example("a/1", ({"role": "system", "content": "x"}, {"role": "user", "content": "1+1"}), "2", source="a")
    other = Example("b/7", ({"role": "user", "content": "1+1"},), "2", source="b")
    assert keys([one]) == keys([other])
    assert problem_hash(one) != problem_hash(Example("a/1", one.messages, "3"))


def test_names_and_sources():
    assert wanted({"aime24": "hub", "amc": None, "mine": "x.jsonl"}) == {"aime24": "hub", "mine": "x.jsonl"}
    with pytest.raises(UserError, match=r"benchmarks\.amie24: not known; did you mean aime24"):
        wanted({"amie24": "hub"})
    with pytest.raises(UserError, match=r"benchmarks: found the name 'a/b'"):
        wanted({"a/b": "x.jsonl"})


def test_what_is_missing_is_said(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        load_benchmark("aime24", _file(tmp_path / "a.jsonl", ROWS["problem"][0]), EvaluationConfig(), MathConfig())
    assert "benchmarks.aime24: 1 problems; the published set has 30" in caplog.text
    assert "no system message" in caplog.text
    with pytest.raises(UserError, match=r"b\.jsonl, line 1, columns: found 'text', expected those of a schema"):
        load_benchmark("mine", _file(tmp_path / "b.jsonl", {"text": "x"}), EvaluationConfig(), PLAIN)


def test_a_prompt_without_room_is_refused_rather_than_left_out(tmp_path):
    sets = load_benchmarks({"mine": _file(tmp_path / "m.jsonl", ROWS["problem"][0])}, EvaluationConfig(), PLAIN)
    refuse_long_prompts(sets, lambda messages: [0] * 5, 5)
    with pytest.raises(
        UserError, match=r"data\.max_prompt_tokens: found 4, expected at least 5, the length of .*m\.jsonl, line 1"
    ):
        refuse_long_prompts(sets, lambda messages: [0] * 5, 4)


# ---- leakage


def test_benchmark_problems_in_the_training_data_are_found(tmp_path, caplog):
    sets = load_benchmarks(
        {"mine": _file(tmp_path / "m.jsonl", *({"problem": f"What is {i} + {i}?", "answer": 2 * i} for i in range(4)))},
        EvaluationConfig(),
        PLAIN,
    )
    rows = [{"prompt": "what  is 2 + 2", "answer": "4"}, {"prompt": "What is 2 + 3?", "answer": "5"}]
    train = _file(tmp_path / "train.jsonl", *rows)
    with caplog.at_level(logging.WARNING):
        assert leaked(train, sets, "files") == {"mine": ["mine/2"]}
    assert "benchmarks.mine: 1 of its problems are in data.train (first: mine/2)" in caplog.text
    assert leaked(None, sets, "always") is None
    assert leaked(train, sets, "never") is None
    assert leaked("owner/set", sets, "files") is None  # not fetched for this


# ---- configuration


def test_benchmarks_are_chosen_on_the_command_line(tmp_path):
    (file := tmp_path / "a.parquet").touch()
    config = load(["--config-name", "evaluate", "benchmarks=paper", f"benchmarks.aime24={file}", "benchmarks.amc=null"])
    assert set(config.benchmarks) == set(BENCHMARKS) - {"gsm8k"}
    assert (config.benchmarks["aime24"], config.benchmarks["amc"], config.benchmarks["arc_c"]) == (str(file), None, "hub")
    assert load(["--config-name", "quickstart"], check=False).benchmarks == {}
    with pytest.raises(UserError, match=r"evaluation\.graders\[0\]: found 'oats', expected one of oat, math_verify"):
        load(["--config-name", "evaluate", "evaluation.graders=[oats]"])
    with pytest.raises(UserError, match=r"evaluation\.samples: found 0, expected at least 1"):
        load(["--config-name", "evaluate", "evaluation.samples=0"])


def test_benchmarks_need_a_mathematics_task():
    assert mathematics(load(["--config-name", "evaluate"], check=False)).thinking is False
    with pytest.raises(UserError, match=r"task: found nemo_amft\.tasks\.arithmetic\.ArithmeticTask, expected task=math"):
        mathematics(load(["--config-name", "quickstart"], check=False))


def test_the_checkpoints_model_is_known_to_the_rules(tmp_path):
    folder = tmp_path / "it's a model"
    folder.mkdir()
    sizes = {"hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 3, "vocab_size": 99}
    sizes |= {"num_key_value_heads": 3, "max_position_embeddings": 2048, "model_type": "llama"}
    (folder / "config.json").write_text(json.dumps(sizes))
    line = completed([f"checkpoint={folder}", "data.max_prompt_tokens=1024"])
    assert line[2:4] == ["--config-name", "evaluate"]
    with pytest.raises(UserError, match=r"1024 \+ 8192 = 9216, expected at most the model's max_position_embeddings, 2048"):
        load(line[1:])
    assert load([*line[1:], "rollout.max_new_tokens=512"]).model.path == str(folder)
    assert completed(["--config-name", "x", "checkpoint=./nowhere"]) == ["--config-name", "x", "checkpoint=./nowhere"]


def test_benchmarks_of_a_training_run_are_checked_beforehand():
    from nemo_amft.config.load import load

    arguments = ["--config-name", "quickstart", "validation.every=20"]
    with pytest.raises(UserError, match=r"benchmarks_every: found 30, expected a multiple of validation.every, 20"):
        load([*arguments, "task=math_plain", "benchmarks.gsm8k=hub", "validation.benchmarks_every=30"])
    with pytest.raises(UserError, match=r"expected task=math or task=math_plain with benchmarks"):
        load([*arguments, "benchmarks.gsm8k=hub"])
    with pytest.raises(UserError, match=r"benchmarks\.gsm9k: not known; did you mean gsm8k\?"):
        load([*arguments, "task=math_plain", "benchmarks.gsm9k=hub"])
    with pytest.raises(UserError, match=r"benchmarks_every: found 20 without benchmarks"):
        load([*arguments, "validation.benchmarks_every=20"])
