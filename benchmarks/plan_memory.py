"""How far the plan's memory is from the real: `python benchmarks/plan_memory.py`, from the repository's root, a few minutes.

Policy and critic of 75 million parameters on five layouts of one or two processes make one update each. Compared are, of every
rank, the bytes of all its tensors between steps, the most that autograd keeps at one time, and the most that a forward and
backward pass allocates. Layers are those of a CPU; a GPU's fused kernels keep less, and no GPU has been compared.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from common import write_result
from transformers import Qwen2Config

from nemo_amft.config.architecture import architecture_of
from nemo_amft.planning.activations import activations
from nemo_amft.planning.memory import static_memory

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.parallel.held_memory import configured, hold
from tests.parallel.ranks import run_ranks

SIZES = {
    "hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 8, "num_attention_heads": 12, "num_key_value_heads": 4,
    "vocab_size": 16000, "max_position_embeddings": 2048, "tie_word_embeddings": False,
}  # fmt: skip
PROMPT, RESPONSE = 128, 385
TENSOR = ("trainer.devices=2", "model.tensor_model_parallel_size=2")
PIPELINE = ("trainer.devices=2", "model.pipeline_model_parallel_size=2")
LAYOUTS = {
    "one process": (1, ()),
    "tensor 2, sequence parallel": (2, (*TENSOR, "model.sequence_parallel=true")),
    "data 2, bf16": (2, ("trainer.devices=2", "trainer.precision=bf16")),
    "pipeline 2": (2, PIPELINE),
    "tensor 2, all layers recomputed": (
        2,
        (*TENSOR, "model.recompute_granularity=full", "model.recompute_method=uniform", "model.recompute_num_layers=1"),
    ),
}  # fmt: skip


def compare(folder: str) -> list[dict]:
    """A row a rank and quantity."""
    found = []
    for name, (ranks, overrides) in LAYOUTS.items():
        config = configured(folder, PROMPT, RESPONSE, *overrides)
        architecture = architecture_of(config.model)
        assert architecture is not None
        for rank, held in enumerate(run_ranks(ranks, hold, config, allocations=True, timeout=600)):
            policy = activations(config, architecture, held.stage, "cpu")
            critic = activations(config, architecture, held.stage, "cpu", output=False)
            for quantity, planned, measured in (
                ("static memory", static_memory(config, architecture, held.stage).total, held.static),
                ("policy activations kept", policy.kept + policy.recomputed, held.policy_saved),
                ("critic activations kept", critic.kept + critic.recomputed, held.critic_saved),
                ("policy pass, all allocations", policy.total, held.allocated),
            ):
                found.append({"layout": name, "rank": rank, "quantity": quantity, "planned": planned, "measured": measured})
    return found


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        Qwen2Config(**SIZES).save_pretrained(folder)
        found = compare(folder)
    for row in found:
        print(
            f"{row['layout']:<33}rank {row['rank']}  {row['quantity']:<29}planned {row['planned'] / 2**20:9.1f} MiB  "
            f"measured {row['measured'] / 2**20:9.1f} MiB  ratio {row['planned'] / row['measured']:.3f}"
        )
    print(write_result("plan_memory", {"model": SIZES, "prompt": PROMPT, "response": RESPONSE, "rows": found}))


if __name__ == "__main__":
    main()
