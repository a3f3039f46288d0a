"""The plan's memory against the bytes that real models hold, on layouts that split them in different ways."""

from __future__ import annotations

import pytest
import torch
from transformers import Qwen2Config, Qwen3Config

from nemo_amft.config.architecture import architecture_of
from nemo_amft.planning.activations import activations
from nemo_amft.planning.measure import held_addresses, held_bytes, saved_bytes
from nemo_amft.planning.memory import static_memory
from tests.parallel.held_memory import configured, hold
from tests.parallel.ranks import run_ranks

TENSOR = ("model.tensor_model_parallel_size=2", "trainer.devices=2")
PIPELINE = ("model.pipeline_model_parallel_size=2", "trainer.devices=2")
RECOMPUTE = ("model.recompute_granularity=full", "model.recompute_method=uniform", "model.recompute_num_layers=1")
LAYOUTS = {
    "tensor_and_sequence_parallel": (2, "qwen2", (*TENSOR, "model.sequence_parallel=true")),
    "data_parallel_bf16": (2, "qwen2", ("trainer.devices=2", "trainer.precision=bf16")),
    "pipeline_with_tied_embeddings": (2, "qwen2_tied", (*PIPELINE, "optim.use_distributed_optimizer=false")),
    "one_rank_padded": (1, "qwen3", ("model.sequence_packing=false",)),
    "tensor_parallel_recomputed": (2, "qwen2", (*TENSOR, *RECOMPUTE)),
    "pipeline_interleaved": (2, "qwen3", (*PIPELINE, "model.virtual_pipeline_model_parallel_size=2")),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, str]:
    """Hub configs: the vocabulary is no multiple of 128; biases, head norms and ties differ."""
    sizes = {
        "hidden_size": 256, "intermediate_size": 640, "num_hidden_layers": 4, "num_attention_heads": 8,
        "num_key_value_heads": 2, "vocab_size": 3000, "max_position_embeddings": 256,
    }  # fmt: skip
    configs = {
        "qwen2": Qwen2Config(**sizes, tie_word_embeddings=False),
        "qwen2_tied": Qwen2Config(**sizes, tie_word_embeddings=True),
        "qwen3": Qwen3Config(**sizes, head_dim=32, tie_word_embeddings=False),
    }
    made = {}
    for name, config in configs.items():
        made[name] = str(tmp_path_factory.mktemp(name))
        config.save_pretrained(made[name])
    return made


@pytest.mark.parametrize("layout", LAYOUTS)
def test_static_memory_and_kept_activations_are_within_five_percent(layout, folders):
    ranks, folder, overrides = LAYOUTS[layout]
    config = configured(folders[folder], 32, 97, *overrides)
    architecture = architecture_of(config.model)
    found = {}
    for rank, held in enumerate(run_ranks(ranks, hold, config)):
        policy = activations(config, architecture, held.stage, "cpu")
        critic = activations(config, architecture, held.stage, "cpu", output=False)
        for name, planned, counted in (
            ("static", static_memory(config, architecture, held.stage).total, held.static),
            ("policy activations", policy.kept + policy.recomputed, held.policy_saved),
            ("critic activations", critic.kept + critic.recomputed, held.critic_saved),
        ):
            found[f"rank {rank}, {name}"] = planned / counted
            print(f"\n{layout:<30} rank {rank} {name:<20} planned {planned:>12,} held {counted:>12,}", end="")
    assert found == pytest.approx(dict.fromkeys(found, 1.0), abs=0.05)


def test_counting_sees_every_storage_once():
    before = held_addresses()
    a = torch.zeros(1000)
    view, other = a[10:], torch.zeros(500, requires_grad=True)
    other.grad = torch.zeros(500)
    assert held_bytes(before) == 4 * (1000 + 500 + 500)
    del a, view, other
    assert held_bytes(before) == 0


def test_saved_bytes_fall_when_the_graph_is_freed():
    x = torch.ones(1000, requires_grad=True)
    with saved_bytes({x.untyped_storage().data_ptr()}) as counted:
        for _ in range(2):
            x.exp().sin().sum().backward()  # exp keeps its result, sin its input: one storage
    assert (counted.peak, counted.now) == (4000, 0)
