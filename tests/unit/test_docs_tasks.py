"""The worked examples of docs/tasks.md run, from files of one's own."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from nemo_amft.config.plugins import load_function, load_plugin
from nemo_amft.config.schema import DataConfig
from nemo_amft.tasks.base import judge_of
from nemo_amft.tasks.rewards import RewardPool
from nemo_amft.types import UserError

BLOCKS = re.findall(r"```python\n(.*?)```", (Path(__file__).parents[2] / "docs" / "tasks.md").read_text(), re.DOTALL)


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """Where the examples lie under the names that they give themselves."""
    for block in BLOCKS:
        path = tmp_path / re.match(r'"""(.*?):', block)[1]
        path.parent.mkdir(exist_ok=True)
        path.write_text(block)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_demonstrations_of_the_task_with_several_turns_are_what_its_judge_says(folder):
    task = load_plugin("task", {"_target_": "my/guess.py:Guess"}).build(DataConfig(), 1)
    shown = [(e.answer, e.demonstration) for e in task.examples("train")[:50]]
    with RewardPool(judge_of(task), 1, 10.0, 512) as pool:
        for answer, turns in shown:
            verdicts = pool.score([(answer, turns[: i + 1 : 2], True) for i in range(0, len(turns), 2)])
            assert [v.follow_up for v in verdicts] == [*turns[1::2], None]
            assert verdicts[-1].correct
        (lost,) = pool.score([("1", ["7", "6", "5"], True)])
    assert (lost.reward, lost.follow_up) == (0.0, None)


def test_the_reward_function_judges_in_the_pool(folder):
    function = load_function("reward.function", "my/reward.py:score")
    with RewardPool(function, 1, 10.0, 512) as pool:
        (verdict,) = pool.score([("7", "#7", True)])
    assert (verdict.reward, verdict.correct) == (pytest.approx(0.98), True)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("my/reward.py:scor", "reward.function: my/reward.py has no function scor; did you mean score?"),
        ("my/none.py:score", "reward.function: no file my/none.py"),
        ("my/guess.py:Guess", "reward.function: my/guess.py has no function Guess"),
        ("score", "reward.function: expected dotted.path.function or file.py:function, found 'score'"),
    ],
)
def test_a_function_that_is_not_there_is_one_line(folder, target, message):
    with pytest.raises(UserError) as raised:
        load_function("reward.function", target)
    assert str(raised.value) == message
