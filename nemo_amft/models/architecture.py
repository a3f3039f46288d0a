"""What a hub config says, in one typed record, and the refusals that can be made before any model is built."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedConfig

from nemo_amft.config.schema import ModelConfig
from nemo_amft.types import UserError

FAMILIES = ("qwen2", "qwen3", "llama")
"""model_type of the hub configs that can be trained: dense decoders with RMSNorm, SwiGLU and rotary positions."""

LLAMA3_SCALING = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
"""Keys of llama3's scaling of rotary positions."""

VOCABULARY_MULTIPLE = 128
"""Megatron-LM's make_vocab_size_divisible_by. Padding to lcm(128, TP) gives every power-of-two TP the same shape."""


@dataclass(frozen=True)
class Architecture:
    """The sizes and switches of a dense decoder."""

    family: str
    num_layers: int
    hidden_size: int
    ffn_hidden_size: int
    num_attention_heads: int
    num_query_groups: int
    head_dim: int
    vocab_size: int
    max_position_embeddings: int
    norm_epsilon: float
    rope_theta: float
    rope_scaling: dict[str, Any] | None
    """Parameters of llama3 scaling, or None."""
    qkv_bias: bool
    qk_norm: bool
    tied_embeddings: bool

    @classmethod
    def from_hub(cls, config: PreTrainedConfig) -> Architecture:
        """Read a hub config of one of `FAMILIES`; `refuse_unsupported` tells whether it may be read."""
        rope = dict(config.rope_parameters or {})
        return cls(
            family=config.model_type,
            num_layers=config.num_hidden_layers,
            hidden_size=config.hidden_size,
            ffn_hidden_size=config.intermediate_size,
            num_attention_heads=config.num_attention_heads,
            num_query_groups=config.num_key_value_heads,
            head_dim=getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
            vocab_size=config.vocab_size,
            max_position_embeddings=config.max_position_embeddings,
            norm_epsilon=config.rms_norm_eps,
            rope_theta=float(rope.get("rope_theta", 10000.0)),
            rope_scaling=rope if rope.get("rope_type", "default") == "llama3" else None,
            qkv_bias=config.model_type == "qwen2",
            qk_norm=config.model_type == "qwen3",
            tied_embeddings=bool(config.tie_word_embeddings),
        )

    def padded_vocab_size(self, tensor_parallel: int) -> int:
        """Rows of the embedding over all tensor-parallel ranks; rows from `vocab_size` on are zero and never predicted."""
        multiple = math.lcm(VOCABULARY_MULTIPLE, tensor_parallel)
        return -(-self.vocab_size // multiple) * multiple


def refuse_unsupported(config: PreTrainedConfig, model: ModelConfig) -> None:
    """Check a hub config and a layout before anything is built.

    Raises:
        UserError: one line that names the key, what was found and what is supported.
    """
    _refuse_family(config)
    _refuse_layout(Architecture.from_hub(config), model)


def _refuse_family(config: PreTrainedConfig) -> None:
    kind = str(config.model_type)  # what stands in config.json or overrides may be none
    if getattr(config, "is_heterogeneous", False):
        raise UserError("per_layer_config in the hub config is not supported; expected layers that are all alike")
    if kind not in FAMILIES:
        hint = " (mixture of experts)" if "moe" in kind or getattr(config, "num_experts", None) else ""
        raise UserError(f"model_type {kind!r}{hint} is not supported; supported: {', '.join(FAMILIES)}")
    rope = dict(config.rope_parameters or {})
    for key, found, wanted in (
        ("hidden_act", config.hidden_act, "silu"),
        # In transformers these two also put biases on o_proj and on the MLP, which no released model of the families has.
        ("attention_bias", bool(getattr(config, "attention_bias", False)), False),
        ("mlp_bias", bool(getattr(config, "mlp_bias", False)), False),
        ("partial_rotary_factor", rope.get("partial_rotary_factor", 1.0), 1.0),
        ("attention_dropout", config.attention_dropout, 0),
    ):
        if found != wanted:
            raise UserError(f"{key}={found!r} in the hub config of a {kind} model is not supported; expected {wanted!r}")
    _refuse_rope(rope)
    sliding = [i for i, layer in enumerate(getattr(config, "layer_types", None) or ()) if layer != "full_attention"]
    if sliding:
        raise UserError(f"sliding-window attention (layer {sliding[0]} of the hub config) is not supported")


def _refuse_rope(rope: dict[str, Any]) -> None:
    kind = rope.get("rope_type", "default")
    if kind not in ("default", "llama3"):
        raise UserError(f"rope_type {kind!r} in the hub config is not supported; supported: default, llama3")
    if kind == "default" and "factor" in rope:
        raise UserError(f"rope factor={rope['factor']!r} in the hub config without a rope_type is not supported")
    for key in ("rope_theta", *(LLAMA3_SCALING if kind == "llama3" else ())):
        found = rope.get(key)
        if not isinstance(found, int | float) or isinstance(found, bool) or found <= 0:
            raise UserError(f"{key}={found!r} in the hub config is not supported; expected a number above 0")


def _refuse_layout(architecture: Architecture, model: ModelConfig) -> None:
    tp, pp = model.tensor_model_parallel_size, model.pipeline_model_parallel_size
    vpp = model.virtual_pipeline_model_parallel_size
    heads, groups = architecture.num_attention_heads, architecture.num_query_groups
    if heads % groups:
        raise UserError(f"num_attention_heads={heads} in the hub config is no multiple of num_key_value_heads={groups}")
    for name, count in (
        ("num_attention_heads", architecture.num_attention_heads),
        ("num_key_value_heads", architecture.num_query_groups),
        ("intermediate_size", architecture.ffn_hidden_size),
    ):
        if count % tp:
            raise UserError(f"model.tensor_model_parallel_size={tp} does not divide the model's {name}={count}")
    if architecture.num_layers % (pp * (vpp or 1)):
        chunks = f"model.pipeline_model_parallel_size={pp}" + (f" times virtual size {vpp}" if vpp else "")
        raise UserError(f"{chunks} does not divide the model's num_hidden_layers={architecture.num_layers}")
    if vpp is not None and pp == 1:
        raise UserError(f"model.virtual_pipeline_model_parallel_size={vpp} needs model.pipeline_model_parallel_size above 1")
    if model.sequence_parallel and tp == 1:
        raise UserError("model.sequence_parallel=true needs model.tensor_model_parallel_size above 1")
    if model.expert_model_parallel_size != 1:
        raise UserError(f"model.expert_model_parallel_size={model.expert_model_parallel_size}: only dense models are supported")
    if model.recompute_granularity == "full" and (model.recompute_method is None or model.recompute_num_layers is None):
        raise UserError("model.recompute_granularity=full needs model.recompute_method and model.recompute_num_layers")
