"""Published problem sets, watched while a policy trains on other problems."""

from __future__ import annotations

import json
import sys

import pytest

from nemo_amft.observe.metrics import read_metrics
from tests.end_to_end.launch import finish

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

TINY = (
    "trainer.devices=1", "model.tensor_model_parallel_size=1", "model.scratch.hidden_size=64",
    "model.scratch.intermediate_size=64", "model.scratch.num_hidden_layers=1", "model.scratch.num_attention_heads=2",
    "task=math_plain", "method=grpo", "rollout=megatron", "data.validation_size=4", "task.system_prompt=''",
    "data.max_prompt_tokens=256", "model.scratch.max_position_embeddings=512",
    "warmup.steps=80", "warmup.lr=1e-2", "warmup.lr_decay_style=constant", "warmup.demonstrations_per_step=8",
    "warmup.target_entropy_batches=1", "data.prompts_per_step=2", "data.samples_per_prompt=2", "optim.lr=1e-6",
    "rollout.max_new_tokens=12", "validation.temperature=0", "validation.every=1", "validation.prompts=4",
    "trainer.max_steps=3", "checkpoint.export_hf=false",
)  # fmt: skip


def test_benchmarks_are_evaluated_on_the_way_by_the_graders_they_name(tmp_path):
    asked = "?\n\nA) y\nB) x\n\nPut the letter of the right option in \\boxed{}."
    rows = [{"prompt": f"{n}{asked}", "answer": "B", "demonstration": r"\boxed{B}"} for n in range(40)]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    choices = {"label": ["A", "B"], "text": ["x", "y"]}
    letters = [{"question": f"{n}?", "choices": choices, "answerKey": "A"} for n in range(40, 56)]
    (tmp_path / "letters.jsonl").write_text("".join(json.dumps(row) + "\n" for row in letters))
    overrides = (
        *TINY, f"data.train={tmp_path / 'train.jsonl'}", f"benchmarks.letters={tmp_path / 'letters.jsonl'}",
        "validation.benchmarks_every=2", f"exp_manager.explicit_log_dir={tmp_path / 'run'}",
    )  # fmt: skip
    command = [sys.executable, "-m", "nemo_amft.train", "--config-name", "quickstart", *overrides]
    assert finish(command, tmp_path / "log") == 0, (tmp_path / "log").read_text()
    drawn = [json.loads(line) for line in (tmp_path / "run" / "rollouts" / "letters_000000.jsonl").read_text().splitlines()]
    # The policy has learnt to say B, and the order of a problem's options is drawn.
    assert all(row["response"] == r"\boxed{B}" for row in drawn)
    share = sum("B) x" in row["prompt"] for row in drawn) / 16
    assert 0 < share < 1
    assert {row["answer"] for row in drawn} == {"A", "B"}  # the letter alone, without the grader's name
    records = [record for record in read_metrics(tmp_path / "run") if record["phase"] == "validation"]
    # Steps 0 and 3 are the ends, 2 is asked for.
    assert {r["step"]: r.get("letters/accuracy") for r in records} == {0: share, 1: None, 2: share, 3: share}
    assert all(record["validation/accuracy"] == 1.0 for record in records)
