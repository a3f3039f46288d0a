"""The runs that are disturbed: the quickstart at its smallest, on two ranks, with warm-up, critic warm-up, training,
validation, meta-updates, saving and export. And what a finished one of them has computed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemo_amft.observe.compare import differences
from nemo_amft.observe.metrics import Record, read_metrics

SMALL = (
    "--config-name", "quickstart", "reward.workers=1", "rollout.max_new_tokens=6",
    "model.scratch.hidden_size=32", "model.scratch.intermediate_size=64", "model.scratch.num_hidden_layers=2",
    "model.scratch.num_attention_heads=2", "model.scratch.num_key_value_heads=2",
    "task.num_train=64", "task.num_validation=16", "task.num_test=16", "task.num_longer=8", "task.worked_steps=false",
    "task.modulus=2", "warmup.steps=4", "warmup.lr=3e-3", "warmup.demonstrations_per_step=8", "warmup.target_entropy_batches=1",
    "data.prompts_per_step=4", "data.samples_per_prompt=2", "data.demonstrations_per_step=4",
    "controller.meta_every=2", "controller.meta_gradient.val_prompts=4", "controller.meta_gradient.val_samples=2",
    "validation.prompts=8", "validation.final_prompts=8", "validation.every=2", "trainer.max_steps=5", "checkpoint.every=3",
)  # fmt: skip

ENGINES = {
    "megatron": ("rollout=megatron",),
    "vllm": ("rollout=vllm", "rollout.kv_cache_gb=0.1", "model.scratch.hidden_size=64"),  # heads of 32, its smallest
}
LAYOUTS = {
    "TP2": ("model.tensor_model_parallel_size=2",),
    "DP2": ("model.tensor_model_parallel_size=1",),
    "PP2": ("model.tensor_model_parallel_size=1", "model.pipeline_model_parallel_size=2"),
}
METHODS = {
    "amft": ("critic.warmup_steps=3",),
    "ppo": ("method=ppo", "controller=fixed", "critic.warmup_steps=3", "data.prompts_per_step=8"),
    "grpo": ("method=amft_grpo",),
}


@dataclass(frozen=True)
class Case:
    """One configuration."""

    layout: str
    engine: str
    method: str

    def __str__(self) -> str:
        return f"{self.layout} {self.engine} {self.method}"

    def arguments(self, run_dir: Path) -> list[str]:
        small = [text for text in SMALL if not (self.method == "ppo" and text.startswith("controller."))]
        own = [*ENGINES[self.engine], *LAYOUTS[self.layout], *METHODS[self.method]]
        return [*small, *own, f"exp_manager.explicit_log_dir={run_dir}"]


CASES = (
    Case("TP2", "megatron", "amft"), Case("DP2", "megatron", "amft"), Case("TP2", "megatron", "ppo"),
    Case("DP2", "megatron", "ppo"), Case("DP2", "megatron", "grpo"), Case("TP2", "megatron", "grpo"),
    Case("TP2", "vllm", "amft"), Case("DP2", "vllm", "amft"), Case("PP2", "vllm", "amft"), Case("PP2", "vllm", "grpo"),
)  # fmt: skip


@dataclass(frozen=True)
class Finished:
    """What a run has computed, times aside."""

    records: list[Record]
    files: dict[str, str]
    """Name -> digest: the exported model, and of the last checkpoint weights, optimisers and counters."""

    @classmethod
    def of(cls, run_dir: Path) -> Finished:
        newest = max((run_dir / "checkpoints").glob("step_*"))
        files = {f"hf/{file.name}": file.read_bytes() for file in sorted((run_dir / "hf").iterdir())}
        files |= {str(file.relative_to(newest.parent)): file.read_bytes() for file in sorted(newest.rglob("*.distcp"))}
        files |= {f"{newest.name}/trainer.json": _state(newest / "trainer.json")}
        return cls(read_metrics(run_dir), {name: hashlib.sha256(content).hexdigest() for name, content in files.items()})

    def unlike(self, other: Finished) -> Iterator[str]:
        """What `other` has otherwise."""
        yield from list(differences(self.records, other.records))[:8]
        for name in sorted(self.files.keys() | other.files.keys()):
            if self.files.get(name) != other.files.get(name):
                yield f"{name} differs"


def _state(path: Path) -> bytes:
    """Counters, mu, streams, without what tells the time."""
    state: dict[str, Any] = json.loads(path.read_text())
    state.pop("saved_at", None)
    state["progress"].pop("seconds", None)
    return json.dumps(state, sort_keys=True).encode()
