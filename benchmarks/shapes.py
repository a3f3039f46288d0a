"""Models of known shapes with random weights, the work in training them, and a processor's matrix peak.

Shared by training_flops.py, cost_growth.py and gpu_check.py: nothing is read from disk and nothing downloaded.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from transformers import LlamaConfig, PreTrainedConfig, Qwen2Config

from nemo_amft.algorithms.methods.base import Demonstration, Term, sft_term
from nemo_amft.algorithms.update import update_policy
from nemo_amft.config.architecture import from_hub
from nemo_amft.config.schema import ModelConfig, OptimConfig
from nemo_amft.models.builder import build_policy
from nemo_amft.models.policy import Policy
from nemo_amft.models.trainable import set_schedule
from nemo_amft.observe.timers import PhaseTimers
from nemo_amft.parallel import platform
from nemo_amft.parallel.groups import Place
from nemo_amft.planning.flops import training_flops
from nemo_amft.types import Example, TokenSequence

_ROPE = {"rope_type": "default", "rope_theta": 1e6}
SHAPES: dict[str, PreTrainedConfig] = {
    # Public config of HuggingFaceTB/SmolLM2-135M.
    "SmolLM2-135M": LlamaConfig(
        vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9,
        num_key_value_heads=3, max_position_embeddings=8192, tie_word_embeddings=True, rope_parameters=_ROPE,
    ),
    # The same with 8 heads and 4 key-value heads of 72, since 9 and 3 cannot be shared by two ranks: 9% more in each layer.
    "SmolLM2-135M, 8 heads": LlamaConfig(
        vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=8,
        num_key_value_heads=4, max_position_embeddings=8192, tie_word_embeddings=True, rope_parameters=_ROPE,
    ),
    # Public configs of Qwen/Qwen2.5-0.5B and Qwen/Qwen2.5-1.5B.
    "Qwen2-0.5B": Qwen2Config(
        vocab_size=151936, hidden_size=896, intermediate_size=4864, num_hidden_layers=24, num_attention_heads=14,
        num_key_value_heads=2, max_position_embeddings=32768, tie_word_embeddings=True, rope_parameters=_ROPE,
    ),
    "Qwen2-1.5B": Qwen2Config(
        vocab_size=151936, hidden_size=1536, intermediate_size=8960, num_hidden_layers=28, num_attention_heads=12,
        num_key_value_heads=2, max_position_embeddings=32768, tie_word_embeddings=True, rope_parameters=_ROPE,
    ),
}  # fmt: skip


def small_qwen2(hidden: int, layers: int, vocabulary: int = 4096) -> PreTrainedConfig:
    """A Qwen2 shape with heads of 64, two queries a key-value head, and an MLP of 3 x the width."""
    return Qwen2Config(
        vocab_size=vocabulary, hidden_size=hidden, intermediate_size=3 * hidden, num_hidden_layers=layers,
        num_attention_heads=hidden // 64, num_key_value_heads=max(1, hidden // 128), max_position_embeddings=8192,
        tie_word_embeddings=True, rope_parameters=_ROPE,
    )  # fmt: skip


def random_policy(
    shape: PreTrainedConfig, model: ModelConfig, precision: str, place: Place, optim: OptimConfig | None = None
) -> Policy:
    """This rank's part of a policy of `shape`, weights N(0, 0.02), with DDP and Adam around it."""
    optim = optim or OptimConfig(lr=1e-6, lr_decay_style="constant", lr_warmup_ratio=0.0)
    with platform.megatron():
        chunks = build_policy(shape, model, precision)
    generator = torch.Generator(platform.device()).manual_seed(1 + place.tensor_rank)
    with torch.no_grad():
        for chunk in chunks:
            for parameter in chunk.parameters():
                if parameter.dim() > 1:
                    parameter.normal_(0.0, 0.02, generator=generator)
    return Policy(chunks, model, optim, precision, place)


def sequences(
    count: int, length: tuple[int, int], vocabulary: int, seed: int, prompt_share: float = 0.35
) -> list[TokenSequence]:
    """Random tokens; lengths drawn evenly between the two of `length`, the first `prompt_share` of each not trained on."""
    g = torch.Generator().manual_seed(seed)
    made = []
    for n in torch.randint(length[0], length[1] + 1, (count,), generator=g).tolist():
        prompt = max(1, int(prompt_share * n))
        tokens = tuple(torch.randint(0, vocabulary, (n,), generator=g).tolist())
        made.append(TokenSequence(tokens, (*[False] * prompt, *[True] * (n - prompt))))
    return made


def demonstration_term(drawn: Sequence[TokenSequence]) -> Term:
    """The SFT term over `drawn`, whole."""
    return sft_term([Demonstration(Example(str(i), (), ""), sequence) for i, sequence in enumerate(drawn)])


def own_share(term: Term, place: Place) -> Term:
    """The part of a term that this data-parallel rank computes."""
    return replace(term, batch=term.batch.share(place))


def schedule_of(policy: Policy) -> Any:
    return policy.scheduler(policy.optim_config.lr, 0.0, 1000, 0.0, "constant")


def step_seconds(policy: Policy, schedule: Any, term: Term) -> float:
    """Wall seconds of one whole update on this rank's share: forward, backward, gradient reduction, optimiser."""
    set_schedule(schedule, 0)
    platform.synchronize()
    start = time.perf_counter()
    update_policy(policy, [term], lambda _: {}, PhaseTimers(), temperature=1.0)
    platform.synchronize()
    return time.perf_counter() - start


def matmul_peak(dtype: torch.dtype, sizes: Sequence[int], repeats: int = 3) -> tuple[float, float]:
    """FLOP/s of the best of several square matrix products on this rank's device, by the clock and by CPU time."""
    best, best_of_cpu = 0.0, 0.0
    for n in sizes:
        a, b = (torch.randn(n, n, device=platform.device()).to(dtype) for _ in range(2))
        out = torch.empty(n, n, dtype=dtype, device=platform.device())
        torch.mm(a, b, out=out)
        for _ in range(repeats):
            platform.synchronize()
            start, cpu = time.perf_counter(), time.process_time()
            torch.mm(a, b, out=out)
            platform.synchronize()
            best = max(best, 2 * n**3 / (time.perf_counter() - start))
            best_of_cpu = max(best_of_cpu, 2 * n**3 / (time.process_time() - cpu))
    return best, best_of_cpu


def model_flops(shape: PreTrainedConfig, drawn: Sequence[TokenSequence]) -> float:
    """FLOPs that forward and backward over these sequences need, by nemo_amft.planning.flops."""
    architecture = from_hub(shape.to_dict())
    assert architecture is not None
    return training_flops(architecture, [len(s.tokens) - 1 for s in drawn], sum(s.num_trained for s in drawn))
