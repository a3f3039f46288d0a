"""Core attention for the local layer spec, on torch's fused scaled-dot-product attention.

Megatron-Core's unfused DotProductAttention writes out all scores (B, heads, T, T) and needs a mask tensor from the caller.
This one does neither: sequences are right-padded, so causality alone keeps padding out of every real token's view. Packed
sequences are padded for the attention alone, in bundles of similar length.
"""

from __future__ import annotations

import torch
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel import gather_from_sequence_parallel_region
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from nemo_amft.data.packing import Bundle, Packing
from nemo_amft.models.packing import PackedSequences


class CoreAttention(torch.nn.Module):
    """softmax(Q K^T / sqrt(head_dim)) V with causal masking and grouped key-value heads; holds no parameters."""

    def __init__(
        self,
        config: TransformerConfig,
        layer_number: int,
        attn_mask_type: AttnMaskType,
        attention_type: str,
        attention_dropout: float | None = None,
        softmax_scale: float | None = None,
        cp_comm_type: str | None = None,
        pg_collection: ProcessGroupCollection | None = None,
    ):
        super().__init__()
        assert config.attention_dropout == 0.0, config.attention_dropout
        assert (attention_type, attn_mask_type) == ("self", AttnMaskType.causal), (attention_type, attn_mask_type)
        self.softmax_scale = softmax_scale
        self.cp_group = pg_collection.cp if config.context_parallel_size > 1 else None

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        attn_mask_type: AttnMaskType | None = None,
        attention_bias: Tensor | None = None,
        packed_seq_params: PackedSeqParams | None = None,
    ) -> Tensor:
        """Attend.

        Args:
            query: (Tq, B, heads, head_dim); B is 1 if packed.
            key, value: (Tk, B, groups, head_dim). Tk exceeds Tq when Megatron's static inference context has prepended its
                cache: the queries are then the last Tq positions.
            attention_mask: None for causal attention; else Megatron's boolean (B or 1, 1, Tq, Tk), True where hidden, which
                replaces causality. Decoding prompts of unequal length needs one.
            attn_mask_type: not needed: causality follows from Tq and Tk alone.
            packed_seq_params: a `PackedSequences`: sequences laid end to end, each attends to itself only.

        Returns:
            (Tq, B, heads * head_dim).
        """
        assert attention_bias is None, "attention bias is not supported"
        if packed_seq_params is not None:
            assert isinstance(packed_seq_params, PackedSequences)
            return self._attend_packed(query, key, value, packed_seq_params.packing)
        return self._attend(query, key, value, attention_mask)

    def _attend_packed(self, query: Tensor, key: Tensor, value: Tensor, packing: Packing) -> Tensor:
        """(P / C, 1, heads, d) and twice (P / C, 1, groups, d) to (P / C, 1, heads * d), C context-parallel ranks.

        With context parallelism every rank gathers all keys and values: simple, exact, and meant for tests on a CPU. Where
        speed counts Transformer Engine passes them around a ring.
        """
        if self.cp_group is None:
            sizes = [bundle.positions for bundle in packing.bundles]
            parts = zip(*(x[:, 0].split(sizes) for x in (query, key, value)), packing.bundles, strict=True)
            return torch.cat([self._attend_bundle(*part) for part in parts])[:, None]
        key, value = (gather_from_sequence_parallel_region(x, group=self.cp_group) for x in (key, value))
        batch, width = packing.shape

        def padded(x: Tensor, slots: Tensor) -> Tensor:
            rows = x.new_zeros(batch * width, *x.shape[2:]).index_copy(0, slots, x[:, 0])
            return rows.view(batch, width, *x.shape[2:]).transpose(0, 1)

        context = self._attend(
            padded(query, packing.slots), padded(key, packing.all_slots), padded(value, packing.all_slots), None
        )
        return context.transpose(0, 1).flatten(0, 1)[packing.slots][:, None]

    def _attend_bundle(self, query: Tensor, key: Tensor, value: Tensor, bundle: Bundle) -> Tensor:
        """(positions, heads, d) and twice (positions, groups, d) to (positions, heads * d)."""
        batch, width = bundle.shape

        def padded(x: Tensor) -> Tensor:
            if bundle.slots is not None:
                x = x.new_zeros(batch * width, *x.shape[1:]).index_copy(0, bundle.slots, x)
            return x.view(batch, width, *x.shape[1:]).transpose(0, 1)

        context = self._attend(padded(query), padded(key), padded(value), None).transpose(0, 1).flatten(0, 1)
        return context if bundle.slots is None else context[bundle.slots]

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, hidden_mask: Tensor | None) -> Tensor:
        """(Tq, B, heads, d) and twice (Tk, B, groups, d) to (Tq, B, heads * d)."""
        num_queries, num_keys = query.size(0), key.size(0)
        visible = None if hidden_mask is None else ~hidden_mask
        if visible is None and 1 < num_queries < num_keys:
            # A chunk of a prompt behind a cache: is_causal would align the mask to the first key instead of the last.
            visible = torch.ones(num_queries, num_keys, dtype=torch.bool, device=query.device).tril(num_keys - num_queries)
        context = scaled_dot_product_attention(
            *(x.permute(1, 2, 0, 3) for x in (query, key, value)),
            attn_mask=visible,
            is_causal=visible is None and num_queries > 1,
            scale=self.softmax_scale,
            enable_gqa=query.size(2) != key.size(2),
        )
        return context.permute(2, 0, 1, 3).reshape(num_queries, query.size(1), -1)
