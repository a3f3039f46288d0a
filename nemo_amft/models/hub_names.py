"""The one table between Megatron's parameter names and the hub's, read in both directions.

Hub tensors are whole. Megatron splits them over tensor-parallel ranks and fuses some: `linear_qkv` holds, for each key-value
group, that group's queries, its key and its value; `linear_fc1` holds each rank's rows of gate, then those of up.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from nemo_amft.models.architecture import Architecture

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


@dataclass(frozen=True)
class Mapping:
    """Where one Megatron parameter comes from. A layer's hub names follow `model.layers.N.`."""

    split: Literal["replicated", "vocabulary", "column", "row", "qkv", "gate_up"]
    """How tensor-parallel ranks share it. column: along dimension 0; row: along 1; vocabulary: column, after padding."""
    hub: tuple[str, ...]


_OUTER = {
    "embedding.word_embeddings.weight": Mapping("vocabulary", (EMBEDDING,)),
    "decoder.final_layernorm.weight": Mapping("replicated", ("model.norm.weight",)),
    "output_layer.weight": Mapping("vocabulary", (HEAD,)),
}
_INPUT_NORM = Mapping("replicated", ("input_layernorm.weight",))
_MLP_NORM = Mapping("replicated", ("post_attention_layernorm.weight",))
_LAYER = {
    "input_layernorm.weight": _INPUT_NORM,
    "pre_mlp_layernorm.weight": _MLP_NORM,
    "self_attention.linear_qkv.weight": Mapping("qkv", tuple(f"self_attn.{x}_proj.weight" for x in "qkv")),
    "self_attention.linear_qkv.bias": Mapping("qkv", tuple(f"self_attn.{x}_proj.bias" for x in "qkv")),
    "self_attention.q_layernorm.weight": Mapping("replicated", ("self_attn.q_norm.weight",)),
    "self_attention.k_layernorm.weight": Mapping("replicated", ("self_attn.k_norm.weight",)),
    "self_attention.linear_proj.weight": Mapping("row", ("self_attn.o_proj.weight",)),
    "mlp.linear_fc1.weight": Mapping("gate_up", ("mlp.gate_proj.weight", "mlp.up_proj.weight")),
    "mlp.linear_fc2.weight": Mapping("row", ("mlp.down_proj.weight",)),
    # Transformer Engine fuses each norm into the linear layer behind it.
    "self_attention.linear_qkv.layer_norm_weight": _INPUT_NORM,
    "mlp.linear_fc1.layer_norm_weight": _MLP_NORM,
}
_LAYER_NAME = re.compile(r"decoder\.layers\.(\d+)\.(.+)")


def mapping_of(name: str) -> Mapping:
    """The mapping of a Megatron parameter whose layer number counts from 0 over the whole model; hub names in full."""
    if (match := _LAYER_NAME.fullmatch(name)) is None:
        return _OUTER[name]
    mapping = _LAYER[match[2]]
    return Mapping(mapping.split, tuple(f"model.layers.{match[1]}.{hub}" for hub in mapping.hub))


def hub_shapes(architecture: Architecture) -> dict[str, tuple[int, ...]]:
    """Every tensor of a hub model with its shape; no `lm_head.weight` where embeddings are tied."""
    a = architecture
    queries, groups = a.num_attention_heads * a.head_dim, a.num_query_groups * a.head_dim
    layer: dict[str, tuple[int, ...]] = {
        "input_layernorm.weight": (a.hidden_size,),
        "post_attention_layernorm.weight": (a.hidden_size,),
        "self_attn.o_proj.weight": (a.hidden_size, queries),
        "mlp.gate_proj.weight": (a.ffn_hidden_size, a.hidden_size),
        "mlp.up_proj.weight": (a.ffn_hidden_size, a.hidden_size),
        "mlp.down_proj.weight": (a.hidden_size, a.ffn_hidden_size),
    }
    for projection, rows in (("q", queries), ("k", groups), ("v", groups)):
        layer[f"self_attn.{projection}_proj.weight"] = (rows, a.hidden_size)
        if a.qkv_bias:
            layer[f"self_attn.{projection}_proj.bias"] = (rows,)
    if a.qk_norm:
        layer["self_attn.q_norm.weight"] = layer["self_attn.k_norm.weight"] = (a.head_dim,)
    shapes = {EMBEDDING: (a.vocab_size, a.hidden_size), "model.norm.weight": (a.hidden_size,)}
    if not a.tied_embeddings:
        shapes[HEAD] = (a.vocab_size, a.hidden_size)
    return shapes | {f"model.layers.{i}.{name}": shape for i in range(a.num_layers) for name, shape in layer.items()}


def to_shard(mapping: Mapping, tensors: Sequence[Tensor], architecture: Architecture, tp_size: int, tp_rank: int) -> Tensor:
    """One rank's Megatron parameter from the whole hub tensors of `mapping.hub`."""
    match mapping.split:
        case "replicated":
            return tensors[0]
        case "row":
            return tensors[0].chunk(tp_size, dim=1)[tp_rank]
        case "column":
            return tensors[0].chunk(tp_size, dim=0)[tp_rank]
        case "gate_up":
            return torch.cat([tensor.chunk(tp_size, dim=0)[tp_rank] for tensor in tensors])
        case "qkv":
            by_group = [tensor.unflatten(0, (architecture.num_query_groups, -1)) for tensor in tensors]
            mine = [tensor.chunk(tp_size, dim=0)[tp_rank] for tensor in by_group]
            return torch.cat(mine, dim=1).flatten(0, 1)
        case "vocabulary":
            rows = architecture.padded_vocab_size(tp_size) // tp_size
            mine = tensors[0][tp_rank * rows : (tp_rank + 1) * rows]
            return torch.nn.functional.pad(mine, (0, 0, 0, rows - mine.size(0)))


def from_shards(mapping: Mapping, shards: Tensor, architecture: Architecture) -> list[Tensor]:
    """The whole hub tensors of `mapping.hub` from the parameters of all tensor-parallel ranks, stacked in rank order.

    They are views of `shards` where their elements lie in order, and copies elsewhere.
    """
    match mapping.split:
        case "replicated":
            return [shards[0]]
        case "row":
            return [shards.transpose(0, 1).flatten(1)]
        case "column":
            return [shards.flatten(0, 1)]
        case "gate_up":
            return [half.flatten(0, 1) for half in shards.chunk(2, dim=1)]
        case "qkv":
            a = architecture
            by_group = shards.unflatten(1, (a.num_query_groups // shards.size(0), -1))
            queries = a.num_attention_heads // a.num_query_groups * a.head_dim
            return [part.flatten(0, 2) for part in by_group.split([queries, a.head_dim, a.head_dim], dim=2)]
        case "vocabulary":
            return [shards.flatten(0, 1)[: architecture.vocab_size]]
