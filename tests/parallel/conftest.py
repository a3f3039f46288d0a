"""Tiny models that several files share."""

from __future__ import annotations

import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from tests.parallel import meta_steps


@pytest.fixture(scope="session")
def folders(tmp_path_factory) -> dict[bool, str]:
    """Tiny Qwen2 models in hub format, by whether embeddings are tied. GQA and biases: some parameters split, some
    replicated."""
    made = {}
    for tied in (False, True):
        torch.manual_seed(5)
        config = Qwen2Config(
            vocab_size=meta_steps.VOCAB, hidden_size=32, intermediate_size=64, num_hidden_layers=4, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=64, tie_word_embeddings=tied, initializer_range=0.3,
        )  # fmt: skip
        model = Qwen2ForCausalLM(config)
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                torch.nn.init.normal_(parameter, std=0.3)
        folder = tmp_path_factory.mktemp(f"tied_{tied}")
        model.save_pretrained(folder)
        made[tied] = str(folder)
    return made
