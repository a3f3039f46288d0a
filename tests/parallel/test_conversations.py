"""Training on episodes of several turns, with both engines and under two layouts."""

from __future__ import annotations

import math

import pytest

from nemo_amft.config.load import load
from nemo_amft.types import UserError
from tests.parallel import method_steps
from tests.parallel.method_steps import SMALL
from tests.parallel.ranks import run_ranks

TALK = (
    "task._target_=tests.parallel.tiny_talk.TinyTalk",
    "rollout.max_new_tokens=6",
    "rollout.max_conversation_tokens=26",
    "data.max_demonstration_tokens=20",
    "model.scratch.hidden_size=64",
    "controller.meta_every=2",
    "controller.meta_gradient.val_prompts=2",
    "controller.meta_gradient.val_samples=2",
    "trainer.max_steps=3",
)
LAYOUTS = {"tp2 megatron": (2, "megatron"), "dp2 megatron": (1, "megatron"), "tp2 vllm": (2, "vllm")}


@pytest.fixture(scope="module")
def records(tmp_path_factory) -> dict[str, list[dict]]:
    found = {}
    for name, (tensor, engine) in LAYOUTS.items():
        choices = [*SMALL, *TALK, f"rollout={engine}", f"model.tensor_model_parallel_size={tensor}", "trainer.devices=2"]
        configs = {"amft": load(["--config-name", "quickstart", *choices], check=False)}
        rows = run_ranks(2, method_steps.run_all, configs, tmp_path_factory.mktemp(name.replace(" ", "_")), timeout=200)[0][
            "amft"
        ]
        found[name] = [r for r in rows if r["phase"] == "train"]
    return found


@pytest.mark.parametrize("name", LAYOUTS)
def test_episodes_of_several_turns_are_drawn_and_trained_on(records, name):
    rows = records[name]
    assert len(rows) == 3
    assert all(1.0 < r["response_turns/mean"] < 3.0 for r in rows)
    assert all(math.isfinite(r[key]) for r in rows for key in ("loss/rl", "loss/sft", "loss/value", "grad_norm/total"))
    # The trainer's log-probs of the drawn tokens, context of later turns included, are the engine's.
    assert all(abs(r["token_mult_prob_error"] - 1) < 1e-4 for r in rows), [r["token_mult_prob_error"] for r in rows]


def test_both_layouts_draw_and_learn_the_same(records):
    for a, b in zip(records["tp2 megatron"], records["dp2 megatron"], strict=True):
        for key in ("reward/mean", "response_turns/mean", "response_length/mean", "truncated_fraction"):
            assert a[key] == b[key], key
        for key in ("loss/rl", "loss/sft", "loss/value", "grad_norm/total"):
            assert a[key] == pytest.approx(b[key], rel=1e-4, abs=1e-6), key


def test_room_for_the_turns_has_to_be_given(tmp_path):
    config = load(["--config-name", "quickstart", *SMALL, TALK[0], "trainer.devices=1", "model.tensor_model_parallel_size=1"])
    with pytest.raises(AssertionError, match=r"rollout\.max_conversation_tokens: found null, .* up to 3 turns") as raised:
        run_ranks(1, method_steps.run_all, {"amft": config}, tmp_path)
    assert UserError.__name__ in str(raised.value)
