"""The games as episodes of several turns, through a whole run."""

from __future__ import annotations

import sys

import pytest

from nemo_amft.observe.metrics import read_metrics
from tests.end_to_end.launch import finish

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

SMALL = (
    "trainer.devices=1", "model.tensor_model_parallel_size=1", "model.scratch.hidden_size=64",
    "model.scratch.intermediate_size=64", "model.scratch.num_hidden_layers=1", "model.scratch.num_attention_heads=2",
    "model.scratch.max_position_embeddings=640", "task.num_train=32", "task.num_validation=8", "task.num_test=8",
    "warmup.steps=2", "warmup.demonstrations_per_step=4", "warmup.target_entropy_batches=1", "data.prompts_per_step=2",
    "data.samples_per_prompt=2", "data.demonstrations_per_step=2", "controller=responsive_short", "critic.warmup_steps=0",
    "validation.prompts=4", "validation.final_prompts=4", "trainer.max_steps=3",
)  # fmt: skip
GAMES = {
    "general points in vllm": (
        "general_points_text", "rollout=vllm", "task.max_turns=3", "task.demonstration_turns=2",
        "data.max_demonstration_tokens=160", "rollout.max_conversation_tokens=200",
    ),
    "virl in megatron": (
        "virl_text", "rollout=megatron", "task.turns=episode", "task.legs=[2,2]", "task.num_ood=4",
        "data.max_prompt_tokens=112", "data.max_demonstration_tokens=400", "rollout.max_conversation_tokens=400",
        # A response that the length limit cuts ends a walk, so it has to learn to stop.
        "warmup.steps=30", "warmup.lr=3e-3",
    ),
}  # fmt: skip


@pytest.mark.parametrize("game", GAMES)
def test_a_game_of_several_turns_is_trained_on(game, tmp_path):
    name, *overrides = GAMES[game]
    folder = f"exp_manager.explicit_log_dir={tmp_path / 'run'}"
    command = [sys.executable, "-m", "nemo_amft.train", "--config-name", name, *SMALL, *overrides, folder]
    assert finish(command, tmp_path / "log") == 0, (tmp_path / "log").read_text()
    records = [record for record in read_metrics(tmp_path / "run") if record["phase"] == "train"]
    assert len(records) == 3
    assert max(record["response_turns/mean"] for record in records) > 1.0
    assert all(record["reward/error"] == record["reward/timeout"] == 0.0 for record in records)
    assert all(abs(record["kl/rollout_vs_policy"]) < 1e-4 for record in records)
