"""Benchmark sets: the registry, prompts, and what must be refused."""

from __future__ import annotations

import json
import logging

import pytest

from nemo_amft.config.load import load
from nemo_amft.config.schema import DataConfig
from nemo_amft.evaluate import completed
from nemo_amft.evaluation.config import EvaluationConfig
from nemo_amft.evaluation.leakage import leaked
from nemo_amft.evaluation.problems import load_benchmark, load_benchmarks, problem_hash, wanted
from nemo_amft.evaluation.registry import AVERAGES, BENCHMARKS
from nemo_amft.evaluation.run import mathematics, refuse_long_prompts
from nemo_amft.tasks.math import MathConfig
from nemo_amft.types import Example, UserError
from tests.unit.published_rows import BENCHMARK_ROWS, CHOICES, ROWS

PLAIN = MathConfig(thinking=False, system_prompt="Think.")


def _file(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


# ---- the registry


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_file_in_the_hubs_columns_is_read_as_the_hub_is(name, tmp_path):
    known, (row, answer) = BENCHMARKS[name], BENCHMARK_ROWS[name]
    found = load_benchmark(name, _file(tmp_path / "rows.jsonl", row), EvaluationConfig(), PLAIN)
    assert [e.answer for e in found.examples] == [answer]
    assert found.graders == (("choice",) if known.choice else ("oat", "math_verify"))
    assert found.samples == [known.samples]
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


def test_repeated_rows_are_one_problem_with_more_samples(tmp_path, caplog):
    row = ROWS["problem"][0]
    other, file = row | {"answer": 3}, tmp_path / "mine.jsonl"
    with caplog.at_level(logging.WARNING):
        found = load_benchmark("mine", _file(file, row, other, row, row), EvaluationConfig(), PLAIN)
    assert "benchmarks.mine: 4 rows are 2 problems, repeated ones with more samples" in caplog.text
    assert [(e.id, e.answer) for e in found.examples] == [("mine/0", "2.0"), ("mine/1", "3")]
    assert len(set(found.keys)) == 2
    assert found.samples == [3, 1]
    assert load_benchmark("mine", str(file), EvaluationConfig(samples=4), PLAIN).samples == [12, 4]


@pytest.mark.parametrize(("repeats", "samples"), [(1, 32), (8, 32), (32, 32), (64, 64)])
def test_a_set_that_repeats_every_problem_is_drawn_as_often_as_the_set_itself(repeats, samples, tmp_path, caplog):
    rows = [{"problem": f"What is {i} + 1?", "answer": i + 1} for i in range(30)] * repeats
    found = load_benchmark("aime24", _file(tmp_path / "rows.jsonl", *rows), EvaluationConfig(), PLAIN)
    assert (len(found.examples), set(found.samples)) == (30, {samples})
    assert "the published set has" not in caplog.text


def test_a_set_of_ones_own(tmp_path):
    choice = load_benchmark("mine", _file(tmp_path / "c.jsonl", CHOICES["mmlu_pro"]), EvaluationConfig(samples=3), PLAIN)
    assert (choice.graders, choice.samples, choice.title) == (("choice",), [3], "mine")
    rows = [ROWS["gsm8k"][0] | {"question": f"What is {i} + 1?"} for i in range(4)]
    free = load_benchmark("mine", _file(tmp_path / "f.jsonl", *rows), EvaluationConfig(max_problems=2), PLAIN)
    assert (free.graders, len(free.examples)) == (("oat", "math_verify"), 2)


def test_the_system_message_and_the_source_do_not_name_a_problem():
    one = Example("a/1", ({"role": "system", "content": "x"}, {"role": "user", "content": "1+1"}), "2", source="a")
    other = Example("b/7", ({"role": "user", "content": "1+1"},), "2", source="b")
    assert problem_hash(one) == problem_hash(other)
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
    with pytest.raises(UserError, match=r"b\.jsonl: columns: found text, expected"):
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
        assert leaked(DataConfig(train=train), sets, "files") == {"mine": ["mine/2"]}
    assert "benchmarks.mine: 1 of its problems are in the training data (first: mine/2)" in caplog.text
    shown = _file(tmp_path / "shown.jsonl", {"prompt": "What is 3 + 3?", "answer": "6", "demonstration": "6"})
    assert leaked(DataConfig(train=train, demonstrations=shown), sets, "files") == {"mine": ["mine/2", "mine/3"]}
    assert leaked(DataConfig(), sets, "always") is None
    assert leaked(DataConfig(train=train), sets, "never") is None
    assert leaked(DataConfig(train="owner/set"), sets, "files") is None  # not fetched for this


# ---- configuration


def test_the_lists_of_benchmarks_have_the_sets_that_their_averages_name():
    chosen = {name: set(load(["--config-name", "evaluate", f"benchmarks={name}"]).benchmarks) for name in
              ("mathematics", "out_of_distribution", "paper")}  # fmt: skip
    assert chosen["mathematics"] == set(AVERAGES["in distribution, LUFFY"])
    assert chosen["out_of_distribution"] == set(AVERAGES["out of distribution"])
    assert chosen["paper"] == chosen["mathematics"] | chosen["out_of_distribution"]


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
