"""Layouts of 12 and more lockstep ranks, and the tiny models that fit all of them."""

from __future__ import annotations

from dataclasses import dataclass

from transformers import PretrainedConfig, Qwen2Config, Qwen3Config

from tests.parallel.meta_steps import Case


@dataclass(frozen=True)
class Layout:
    """A world, and what runs in it."""

    ranks: int
    case: Case
    tied: bool = False
    family: str = "qwen2"
    """qwen2: biases. qwen3: norms of query and key heads."""
    critic: bool = False

    @property
    def data(self) -> int:
        return self.ranks // (self.case.tensor * self.case.pipeline * self.case.context)


LAYOUTS = {
    "tp2_sp_pp2_cp2_dp2_tied": Layout(16, Case(tensor=2, pipeline=2, context=2, sequence_parallel=True), tied=True),
    "tp8_sp_dp2": Layout(16, Case(tensor=8, sequence_parallel=True)),
    "tp4_sp_pp2_cp2_qwen3_tied": Layout(
        16, Case(tensor=4, pipeline=2, context=2, sequence_parallel=True), tied=True, family="qwen3"
    ),
    # Tied embeddings on several stages get a bucket of their own, and an odd number of 64 elements is before it.
    "tp2_pp4_vpp2_dp2_tied": Layout(16, Case(tensor=2, pipeline=4, virtual=2), tied=True),
    "tp2_sp_pp4_vpp2_cp2": Layout(16, Case(tensor=2, pipeline=4, virtual=2, context=2, sequence_parallel=True)),
    "tp4_pp4_qwen3": Layout(16, Case(tensor=4, pipeline=4), family="qwen3"),
    "tp2_pp2_cp2_dp2_tied_plain": Layout(
        16, Case(tensor=2, pipeline=2, context=2, distributed_optimizer=False), tied=True
    ),
    "tp4_sp_pp2_cp2_critic": Layout(16, Case(tensor=4, pipeline=2, context=2, sequence_parallel=True), critic=True),
    # The padding of buckets is other where the data-parallel size is no power of two.
    "pp4_dp3_tied": Layout(12, Case(pipeline=4), tied=True),
}  # fmt: skip
"""Of which each rank and the whole are examined (examination.py, invariants.py). plain: no distributed optimiser."""


def hub_config(tied: bool, family: str = "qwen2", layers: int = 8, hidden: int = 32, vocab: int = 100) -> PretrainedConfig:
    """Eight heads and eight layers, for TP8 and PP4 with two chunks a rank."""
    sizes = {
        "vocab_size": vocab, "hidden_size": hidden, "intermediate_size": 32, "num_hidden_layers": layers,
        "num_attention_heads": 8, "num_key_value_heads": 8, "max_position_embeddings": 64, "tie_word_embeddings": tied,
        "initializer_range": 0.1,
    }  # fmt: skip
    return Qwen2Config(**sizes) if family == "qwen2" else Qwen3Config(**sizes, head_dim=8)
