"""The critic: Megatron's GPT model with a scalar head in place of the output layer."""

from __future__ import annotations

import torch
from megatron.core.tensor_parallel import gather_from_sequence_parallel_region
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from nemo_amft.models.packing import PackedModel, over_context_ranks
from nemo_amft.parallel import platform


class ValueModel(PackedModel):
    """One pipeline chunk of the critic. The last stage returns values (B, S) in float32, also of packed sequences; other
    arguments are GPTModel's."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        assert not self.share_embeddings_and_output_weights, "a value head is never tied to the embedding"
        if self.post_process:
            self.output_layer = ValueHead(self.config, self.tp_group)

    def _postprocess(self, *, hidden_states, packed_seq_params=None, **_unused) -> Tensor:
        if not self.post_process:
            return hidden_states
        values = self.output_layer(hidden_states)
        if packed_seq_params is None:
            return values
        packing = packed_seq_params.packing
        values = values.new_zeros(packing.shape).flatten().index_copy(0, packing.slots, values[0]).view(packing.shape)
        return over_context_ranks(values, self.pg_collection.cp)


class ValueHead(torch.nn.Module):
    """hidden -> 1 without bias, zero at the start, the same on every tensor-parallel rank.

    The weight is no tensor-parallel shard, so Megatron counts it on the first rank only and checkpoints it as a replica. Under
    sequence parallelism a rank sees its own tokens only, as in a norm: the weight carries the same mark, `finalize_model_grads`
    sums its gradient, and values are gathered instead of hidden states.
    """

    def __init__(self, config: TransformerConfig, tp_group: torch.distributed.ProcessGroup):
        super().__init__()
        self.sequence_parallel = config.sequence_parallel
        self.tp_group = tp_group
        zeros = torch.zeros(1, config.hidden_size, dtype=config.params_dtype, device=platform.device())
        self.weight = torch.nn.Parameter(zeros)
        self.weight.sequence_parallel = config.sequence_parallel

    def forward(self, hidden_SBH: Tensor) -> Tensor:
        """Values (B, S) of hidden states (S, B, H), S being this rank's share under sequence parallelism; fp32 throughout."""
        value_SB = (hidden_SBH.float() @ self.weight.float().t()).squeeze(-1)
        if self.sequence_parallel:
            # Every rank computes the same loss of the gathered values, so each keeps its slice of the gradient: no sum.
            value_SB = gather_from_sequence_parallel_region(value_SB, tensor_parallel_output_grad=False, group=self.tp_group)
        return value_SB.t().contiguous()
