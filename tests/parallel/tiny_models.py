"""Tiny hub models with random weights, and transformers' own numbers for them."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, PreTrainedConfig, Qwen2Config, Qwen3Config

VOCABULARY = 100
"""No multiple of 128, so every test runs with a padded vocabulary."""

_SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.1,  # large enough for every layer to show in the logits
}
_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 1000.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 3.0,
    "original_max_position_embeddings": 16,
}


def tiny_configs() -> dict[str, PreTrainedConfig]:
    """A config for each family and for each switch that changes how weights are laid out."""
    return {
        "qwen2": Qwen2Config(**_SIZES, tie_word_embeddings=False),
        "qwen2_tied": Qwen2Config(**_SIZES, tie_word_embeddings=True),
        "qwen3": Qwen3Config(**_SIZES, head_dim=32, rope_parameters={"rope_type": "default", "rope_theta": 1e6}),
        "llama": LlamaConfig(**_SIZES, head_dim=16, tie_word_embeddings=True, rope_parameters=_LLAMA3),
    }


def write_tiny_model(name: str, folder: Path) -> Path:
    """Write one of `tiny_configs()` with seeded weights, norms and biases included, in hub format."""
    with torch.random.fork_rng():
        torch.manual_seed(7)
        model = AutoModelForCausalLM.from_config(tiny_configs()[name], dtype=torch.float32)
        for parameter in model.parameters():
            if parameter.dim() == 1:
                torch.nn.init.normal_(parameter, mean=1.0, std=0.2)
    model.save_pretrained(folder)
    return folder


def read_tiny_model(folder: Path, dtype: torch.dtype = torch.float32) -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)


def read_tiny_config(folder: Path) -> PreTrainedConfig:
    return AutoConfig.from_pretrained(folder)


def reference_log_prob_and_entropy(logits: torch.Tensor, labels: torch.Tensor, temperature: float) -> torch.Tensor:
    """(2, B, S) from logits (B, S, vocabulary) and labels (B, S), by torch's log_softmax."""
    log_p = (logits / temperature).log_softmax(-1)
    return torch.stack([log_p.gather(-1, labels[..., None])[..., 0], -(log_p.exp() * log_p).sum(-1)])
