import dataclasses
import re

import pytest

from nemo_amft.config.schema import DataConfig
from nemo_amft.data.character_tokenizer import CHARACTERS
from nemo_amft.tasks.arithmetic import ALPHABET, ArithmeticConfig, ArithmeticTask
from nemo_amft.tasks.arithmetic.problems import solve, write_problem
from nemo_amft.types import UserError

SPLITS = ("train", "validation", "test")


def make_task(seed: int = 1, **config) -> ArithmeticTask:
    defaults = {"num_train": 300, "num_validation": 50, "num_test": 50, "max_operand": 9}
    return ArithmeticTask(ArithmeticConfig(**{**defaults, **config}), DataConfig(), seed)


@pytest.mark.parametrize(
    ("operands", "operators", "modulus", "problem", "answer", "demonstration"),
    [
        ([17, 3, 45], ["*", "+"], None, "17*3+45=", 96, "17*3=51;51+45=96#96"),
        ([7, 3, 4], ["*", "+"], 10, "7*3+4=", 5, "7*3=1;1+4=5#5"),
        ([2, 5], ["-"], None, "2-5=", -3, "2-5=-3#-3"),
        ([2, 5], ["-"], 10, "2-5=", 7, "2-5=7#7"),
        ([2, 3, 4], ["+", "*"], None, "2+3*4=", 20, "2+3=5;5*4=20#20"),
    ],
)
def test_steps_go_from_left_to_right_and_end_in_the_answer(operands, operators, modulus, problem, answer, demonstration):
    assert write_problem(operands, operators) == problem
    assert solve(operands, operators, modulus, worked_steps=True) == (answer, demonstration)
    assert solve(operands, operators, modulus, worked_steps=False) == (answer, f"#{answer}")


@pytest.mark.parametrize("modulus", [None, 7])
def test_every_demonstration_earns_the_reward_and_another_problem_s_does_not(modulus):
    task = make_task(modulus=modulus, max_operand=30)
    verify = task.verifier()
    for example in task.examples("train"):
        assert verify(example.answer, example.demonstration, True).reward == 1.0
        assert verify(str(int(example.answer) + 1), example.demonstration, True).reward == 0.0


def test_splits_have_their_sizes_and_share_no_problem_text():
    task = make_task(operands=(2, 3))
    texts = {split: [example.messages[0]["content"] for example in task.examples(split)] for split in SPLITS}
    assert {split: len(found) for split, found in texts.items()} == {"train": 300, "validation": 50, "test": 50}
    assert len(set().union(*texts.values())) == 400


def test_splits_have_the_same_mix_although_short_problems_run_out():
    # Nearly all of the 243 problems of two operands are drawn; without the last shuffle the last split would hold hardly any.
    task = make_task(seed=3, operands=(2, 3), num_train=1200, num_validation=200, num_test=200)
    short = {split: sum(len(example.messages[0]["content"]) == 4 for example in task.examples(split)) for split in SPLITS}
    assert short["test"] / 200 == pytest.approx(short["train"] / 1200, abs=0.05)


def test_problems_depend_on_config_and_seed_alone():
    assert make_task(seed=1).examples("test") == make_task(seed=1).examples("test")
    assert make_task(seed=1).examples("test") != make_task(seed=2).examples("test")


def test_all_text_is_of_the_alphabet_which_the_character_tokenizer_covers():
    task = make_task(modulus=None, max_operand=99)
    for example in task.examples("train"):
        assert set(example.messages[0]["content"] + example.demonstration) <= set(ALPHABET)
    assert set(ALPHABET) <= set(CHARACTERS)


@pytest.mark.parametrize(
    ("response", "reward"),
    [
        ("1+4=5#5", 1.0),
        ("nonsense#5", 1.0),  # steps are not judged
        ("#4#5", 1.0),  # the last one counts
        ("#5#4", 0.0),
        ("#05", 1.0),  # integers are compared, not text
        ("# 5 ", 1.0),
        ("5", 0.0),
        ("#", 0.0),
        ("#5.0", 0.0),
        ("#5;", 0.0),
        ("#--5", 0.0),
        ("#\u0665", 0.0),  # a digit elsewhere, but not of the alphabet
        ("#" + "5" * 10_000, 0.0),
        ("", 0.0),
    ],
)
def test_verifier_reads_the_integer_after_the_last_mark(response, reward):
    verdict = make_task().verifier()("5", response, True)
    assert (verdict.reward, verdict.correct, verdict.status) == (reward, reward == 1.0, "ok")


def test_an_unfinished_response_earns_nothing():
    assert make_task().verifier()("5", "1+4=5#5", False).reward == 0.0


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"operands": (1, 2)}, "task.operands: found (1, 2), expected two numbers"),
        ({"operators": "+/"}, "task.operators: found '+/', expected some of '+-*', each once"),
        ({"operators": ""}, "task.operators: found ''"),
        ({"modulus": 1}, "task.modulus: found 1, expected null or at least 2"),
        ({"operands": (2, 2)}, "task.num_train + num_validation + num_test: found 400, expected at most 121"),
    ],
)
def test_bad_settings_are_refused_in_one_line_naming_the_key(config, message):
    with pytest.raises(UserError, match=f"^{re.escape(message)}.*$"):
        make_task(**config)


def test_files_that_would_be_ignored_are_refused():
    data = dataclasses.replace(DataConfig(), train="problems.jsonl")
    with pytest.raises(UserError, match=r"^data\.train: found 'problems\.jsonl', expected null"):
        ArithmeticTask(ArithmeticConfig(), data, 1)


def test_what_is_not_trained_but_kept_has_its_own_operators_alone():
    task = make_task(operators="+-", kept_operators="*")
    kept = [example.messages[0]["content"] for example in task.evaluation_sets()["kept"]]
    assert len(kept) == task.config.num_longer
    assert all(re.fullmatch(r"\d(\*\d){2,3}=", text) for text in kept)
    assert not any("*" in example.messages[0]["content"] for split in SPLITS for example in task.examples(split))
    assert "kept" not in make_task().evaluation_sets()


def test_an_operator_is_trained_or_kept():
    with pytest.raises(UserError, match=r"task.kept_operators: found '-\*', expected some of '\*', each once"):
        make_task(operators="+-", kept_operators="-*")
