"""The worked examples of CONTRIBUTING.md are what a contributor copies: they run, as plug-ins from files of one's own."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from nemo_amft.algorithms.controllers.base import Observation
from nemo_amft.algorithms.methods.base import Demonstration, Group, Sample
from nemo_amft.config.plugins import load_plugin
from nemo_amft.config.schema import DataConfig
from nemo_amft.tasks.rewards import RewardPool
from nemo_amft.types import Example, TokenSequence, Verdict

BLOCKS = re.findall(r"```python\n(.*?)```", (Path(__file__).parents[2] / "CONTRIBUTING.md").read_text(), re.DOTALL)


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    """Load the class of that name from the example that defines it."""
    monkeypatch.chdir(tmp_path)

    def load(section: str, name: str, **keys):
        (block,) = [b for b in BLOCKS if f"class {name}" in b and f"class {name}Config" in b]
        Path("mine.py").write_text(block)
        return load_plugin(section, {"_target_": f"mine.py:{name}", **keys})

    return load


def _group(*rewards: float) -> Group:
    row = TokenSequence((1, 2), (False, True), (0.0, -0.5))
    return Group(Example("x", (), ""), tuple(Sample(row, "", Verdict(r, r > 0), True, 1) for r in rewards))


def test_the_method_imitates_only_what_is_unsolved(plugin):
    method = plugin("method", "Unsolved").build(8)
    shown = [Demonstration(Example("x", (), ""), TokenSequence((1, 2), (False, True)))]
    unsolved, solved = (method.compose(0, [_group(*rewards)], shown) for rewards in ((0.0, 0.0), (1.0, 0.0)))
    assert [term.batch.total_tokens for term in unsolved] == [1, 2]
    assert [term.batch.total_tokens for term in solved] == [0, 2]


def test_the_controller_walks_its_line(plugin):
    controller = plugin("controller", "Linear", steps=10).build()
    assert controller.update(Observation(0, {}))["sft"] == pytest.approx(0.9)
    assert controller.update(Observation(5, {})) == pytest.approx({"sft": 0.5, "rl": 0.5})
    assert controller.update(Observation(99, {}))["sft"] == pytest.approx(0.1)


def test_the_task_is_graded_in_child_processes(plugin):
    task = plugin("task", "Reverse", length=3).build(DataConfig(), 1)
    example = task.examples("validation")[0]
    with RewardPool(task.verifier(), 1, 10.0, 512) as pool:
        right, wrong = pool.score([(example.answer, example.demonstration, True), (example.answer, "xyz", True)])
    assert (right.reward, wrong.reward) == (1.0, 0.0)
