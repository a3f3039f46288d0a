"""Planned FLOPs against torch's own counter on real models, and against sums done by hand."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config, Qwen3Config

from nemo_amft.config.architecture import Architecture
from nemo_amft.planning.flops import forward_flops, generation_flops, training_flops

SIZES = {
    "hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
    "vocab_size": 300, "max_position_embeddings": 128,
}  # fmt: skip
CONFIGS = {
    "qwen2": Qwen2Config(**SIZES, tie_word_embeddings=False),
    "qwen3": Qwen3Config(**SIZES, head_dim=32, tie_word_embeddings=True),
    "llama": LlamaConfig(**SIZES, head_dim=16, tie_word_embeddings=True),
}
LENGTHS, TRAINED = (40, 23), 30


def architecture(name: str) -> Architecture:
    config = CONFIGS[name]
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return Architecture(
        model_type=name, head_dim=head_dim, tie_word_embeddings=config.tie_word_embeddings, **SIZES
    )  # fmt: skip


def counted(name: str, backward: bool) -> tuple[float, float]:
    """(attention's, all other) FLOPs that torch counts: each sequence by itself, the output layer on trained positions only."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS[name], attn_implementation="eager")
    left = TRAINED
    with FlopCounterMode(display=False) as counter:
        for length in LENGTHS:
            ids = torch.randint(0, 300, (1, length))
            hidden = model.model(ids, use_cache=False)[0][0]
            here = min(left, length - 5)
            left -= here
            logits = model.lm_head(hidden[length - here :])
            if backward:
                logits.sum().backward()
    assert left == 0
    ops = {str(op): n for op, n in counter.get_flop_counts()["Global"].items()}
    batched = ops["aten.bmm"]  # scores and values
    return batched, sum(ops.values()) - batched


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("backward", [False, True])
def test_flops_are_those_torch_counts_with_half_the_square_of_attention(name, backward):
    attention, rest = counted(name, backward)
    if backward:
        # The first layer's input is the embedding, which is trained too, so every product has both its gradients.
        assert training_flops(architecture(name), LENGTHS, TRAINED) == pytest.approx(attention / 2 + rest, rel=1e-9)
    else:
        assert forward_flops(architecture(name), LENGTHS, TRAINED) == pytest.approx(attention / 2 + rest, rel=1e-9)


def test_a_model_without_output_layer_lacks_its_product():
    a = architecture("qwen2")
    assert forward_flops(a, [40], 10) - forward_flops(a, [40], 10, output=False) == 2 * 64 * 300 * 10


def test_training_of_qwen_7b_is_six_flops_a_matrix_parameter_and_token_plus_attention():
    a = Architecture("qwen2", 3584, 18944, 28, 28, 4, 152064, False, 4096, 128)
    matrices = a.parameters - a.embedding_parameters - 28 * (4608 + 2 * 3584) - 3584  # input embedding, biases, norms
    # PaLM, appendix B: 12 L H Q T a token for both directions, of which causality needs half.
    expected = 6 * matrices * 4096 + 6 * 28 * 28 * 128 * 4096 * 4096
    assert training_flops(a, [4096], 4096) == pytest.approx(expected, rel=1e-12)


def test_generation_reads_all_tokens_but_the_last_once_and_predicts_the_response():
    a = architecture("qwen2")
    assert generation_flops(a, [10, 7], [5, 0]) == forward_flops(a, [14], 5)
