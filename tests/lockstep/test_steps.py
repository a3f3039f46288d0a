"""Whole steps on 16 ranks are those of one rank, and go on from a checkpoint as if nothing had been."""

from __future__ import annotations

from unittest.mock import patch

import pytest
import torch
from transformers import Qwen2ForCausalLM

from nemo_amft.models import checkpoints
from tests.lockstep.layouts import hub_config
from tests.lockstep.memory import MemoryCheckpointing
from tests.lockstep.whole_steps import Outcome, third_step, two_steps_and_a_third
from tests.lockstep.world import run_lockstep
from tests.parallel import meta_steps
from tests.parallel.meta_steps import Case
from tests.parallel.test_layouts import assert_same

LAYOUTS = {
    "dp16": Case(),
    "tp8_sp_dp2": Case(tensor=8, sequence_parallel=True),
    "tp4_sp_pp2_cp2": Case(tensor=4, pipeline=2, context=2, sequence_parallel=True),
    "tp2_sp_pp2_cp2_dp2_tied": Case(tensor=2, pipeline=2, context=2, sequence_parallel=True),
    "tp2_pp2_cp2_dp2_plain": Case(tensor=2, pipeline=2, context=2, distributed_optimizer=False),
    "tp2_pp4_vpp2_dp2_tied": Case(tensor=2, pipeline=4, virtual=2),
}
"""tied: embeddings. plain: without the distributed optimiser."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A hub folder of a tiny model, by whether embeddings are tied and by the number of layers."""

    def make(tied: bool, layers: int) -> str:
        path = tmp_path_factory.getbasetemp() / f"whole_steps_{tied}_{layers}"
        if not path.exists():
            torch.manual_seed(5)
            model = Qwen2ForCausalLM(hub_config(tied, layers=layers, vocab=meta_steps.VOCAB))
            for name, parameter in model.named_parameters():
                if name.endswith("bias"):
                    torch.nn.init.normal_(parameter, std=0.1)
            model.save_pretrained(path)
        return str(path)

    return make


@pytest.fixture(scope="module")
def one_rank(folder, tmp_path_factory):
    """The reference."""
    made: dict[tuple[bool, int], Outcome] = {}

    def get(tied: bool, layers: int) -> Outcome:
        if (tied, layers) not in made:
            store = str(tmp_path_factory.mktemp("one_rank"))
            with patch.object(checkpoints, "dist_checkpointing", MemoryCheckpointing()):
                (made[tied, layers],) = run_lockstep(1, two_steps_and_a_third, folder(tied, layers), Case(), store)
        return made[tied, layers]

    return get


@pytest.mark.parametrize("name", list(LAYOUTS))
def test_steps_and_a_resume_on_16_ranks_are_those_of_one(folder, one_rank, tmp_path, monkeypatch, name):
    monkeypatch.setattr(checkpoints, "dist_checkpointing", MemoryCheckpointing())
    case, tied = LAYOUTS[name], "tied" in name
    model = folder(tied, 8 if case.virtual else 4)
    outcomes = run_lockstep(16, two_steps_and_a_third, model, case, str(tmp_path))
    resumed = run_lockstep(16, third_step, model, case, str(tmp_path))
    expected = one_rank(tied, 8 if case.virtual else 4)

    worst = assert_same(outcomes[0].metrics, expected.metrics)
    print(f"{name:<28}largest difference from one rank {worst:.1e}")
    assert len({step["mu"] for step in expected.metrics}) == 3  # it moved, so the comparison means something
    for after, outcome in zip(resumed, outcomes, strict=True):
        assert outcome.metrics == outcomes[0].metrics, "ranks disagree with one another"
        assert after.metrics == outcome.metrics[2:]
        for weights in (outcome.weights, after.weights):
            assert list(weights) == list(outcomes[0].weights)
            assert all(torch.equal(weight, outcomes[0].weights[key]) for key, weight in weights.items())
    assert set(outcomes[0].weights) == set(expected.weights)
    for key, weight in expected.weights.items():
        torch.testing.assert_close(outcomes[0].weights[key], weight, rtol=1e-5, atol=1e-6)
