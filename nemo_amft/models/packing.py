"""Packed sequences inside a Megatron model: what the attention is told, where RoPE's positions and the outputs go."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.distributed as dist
from megatron.core.models.gpt import GPTModel
from megatron.core.packed_seq_params import PackedSeqParams
from torch import Tensor

from nemo_amft.data.packing import Packing


@dataclass
class PackedSequences(PackedSeqParams):
    """Megatron's parameters of packed sequences, with the packing itself.

    Transformer Engine's attention and RoPE take the `thd` format. The local attention (models/attention.py) works on the
    packing; to Megatron its sequences are then one of the `sbhd` format, whose RoPE is given position by position
    (`PackedModel`).
    """

    packing: Packing | None = None

    @classmethod
    def of(cls, packing: Packing, with_engine: bool) -> PackedSequences:
        longest = packing.shape[1]
        return cls(
            qkv_format="thd" if with_engine else "sbhd",
            cu_seqlens_q=packing.boundaries,
            cu_seqlens_kv=packing.boundaries,
            max_seqlen_q=longest,
            max_seqlen_kv=longest,
            packing=packing,
        )


class PackedModel(GPTModel):
    """A GPT model whose local attention takes packed sequences."""

    def _preprocess(self, input_ids, position_ids, *args, packed_seq_params: PackedSeqParams | None = None, **kwargs):
        by_position = packed_seq_params is not None and packed_seq_params.qkv_format != "thd"
        if by_position:  # for `thd` Megatron makes the whole table of RoPE, not a context-parallel rank's part of it
            packed_seq_params = replace(packed_seq_params, qkv_format="thd")
        output = super()._preprocess(input_ids, position_ids, *args, packed_seq_params=packed_seq_params, **kwargs)
        return (output[0], output[1][position_ids[0]], *output[2:]) if by_position else output


def rows_and_slots(mask_BS: Tensor, packing: Packing | None) -> tuple[Tensor, Tensor]:
    """Of the positions in the mask that this rank computes: their rows among hidden states (positions, sequences) flattened,
    and their slots b * S + s. Both int64 [T]."""
    if packing is not None:
        rows_T = mask_BS.reshape(-1)[packing.slots].nonzero()[:, 0]
        return rows_T, packing.slots[rows_T]
    sequence_T, position_T = mask_BS.nonzero(as_tuple=True)
    return position_T * mask_BS.size(0) + sequence_T, sequence_T * mask_BS.size(1) + position_T


class _SumOutputs(torch.autograd.Function):
    """Sum over ranks that hold different positions of an output. They all compute the same loss from the sum, so each keeps the
    gradient of its own positions: backward is the identity."""

    @staticmethod
    def forward(ctx, output, group):
        output = output.clone()
        dist.all_reduce(output, group=group)
        return output

    @staticmethod
    def backward(ctx, gradient):
        return gradient, None


def over_context_ranks(output: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Whole outputs on every context-parallel rank from the parts that each computed, 0 elsewhere."""
    return _SumOutputs.apply(output, group) if group.size() > 1 else output
