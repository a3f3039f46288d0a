"""The policy: Megatron's GPT model whose output layer turns labels into log-probs and entropies.

Shapes: B sequences, S positions, T trained positions of the micro-batch, H hidden, V this rank's rows of the vocabulary.
"""

from __future__ import annotations

import torch
from megatron.core.tensor_parallel import (
    ColumnParallelLinear,
    copy_to_tensor_model_parallel_region,
    gather_from_sequence_parallel_region,
)
from torch import Tensor

from nemo_amft.data.packing import Packing
from nemo_amft.models.logprob import vocab_parallel_log_prob_and_entropy
from nemo_amft.models.packing import PackedModel, over_context_ranks, rows_and_slots


class PolicyModel(PackedModel):
    """One pipeline chunk of the policy.

    Without labels it is GPTModel (logits, inference contexts), except that columns that pad the vocabulary never win: they are
    cut off gathered logits and -inf in a tensor-parallel shard.

    With `labels` (B, S) int64 and `loss_mask` (B, S) bool the last stage returns float32 (2, B, S): log-prob and entropy of the
    token predicted AT each position, so the caller shifts labels left by one. Positions outside the mask are 0, and do not
    pass through the output layer. Under sequence parallelism S is a multiple of the tensor-parallel size.

    With packed sequences the tokens are (1, P / C) and labels, mask and output still (B, S): whole on every one of C
    context-parallel ranks, with gradients for the positions of its own.
    """

    def __init__(self, *args, true_vocab_size: int, logprob_chunk_tokens: int, **kwargs):
        """Args are GPTModel's, `vocab_size` being the padded one. `true_vocab_size` counts the tokens there really are: what
        the hub's files have in rows beyond them is padding, too."""
        super().__init__(*args, **kwargs)
        self.true_vocab_size = true_vocab_size
        self.logprob_temperature = 1.0
        """Log-probs and entropies are of softmax(logits / logprob_temperature); set before a pass."""
        self.entropy_gradient = True
        """Whether entropies carry gradients; without, the backward pass of the output layer is cheaper. Set before a pass."""
        if self.post_process:
            # GPTModel takes no spec for its output layer; the class adds a method's worth of behaviour and no state of its own.
            self.output_layer.__class__ = LogProbOutputLayer
            self.output_layer.true_vocab_size = true_vocab_size
            self.output_layer.chunk_tokens = logprob_chunk_tokens

    def _postprocess(
        self, *, hidden_states, labels, loss_mask, runtime_gather_output=None, packed_seq_params=None, **kwargs
    ) -> Tensor:
        if labels is not None and self.post_process:
            weight = self.shared_embedding_or_output_weight() if self.share_embeddings_and_output_weights else None
            output = self.output_layer(
                hidden_states,
                weight=weight,
                labels=labels,
                loss_mask=loss_mask,
                packing=None if packed_seq_params is None else packed_seq_params.packing,
                temperature=self.logprob_temperature,
                entropy_gradient=self.entropy_gradient,
            )
            return over_context_ranks(output, self.pg_collection.cp)
        output = super()._postprocess(
            hidden_states=hidden_states,
            labels=None,
            loss_mask=loss_mask,
            runtime_gather_output=runtime_gather_output,
            packed_seq_params=packed_seq_params,
            **kwargs,
        )
        return self._without_padding(output) if self.post_process else output

    def _without_padding(self, logits: Tensor) -> Tensor:
        """Take padding out of logits (B, S, gathered or this rank's columns)."""
        if logits.size(-1) == self.vocab_size:
            return logits[..., : self.true_vocab_size]
        own = max(0, self.true_vocab_size - self.tp_group.rank() * logits.size(-1))
        logits[..., own:] = -torch.inf
        return logits


class LogProbOutputLayer(ColumnParallelLinear):
    """The output layer. Log-probs are computed inside its forward, because the distributed optimiser's overlapped parameter
    gather waits for a module's parameters in that module's forward hook: reading `output_layer.weight` from elsewhere would
    read last step's."""

    true_vocab_size: int
    chunk_tokens: int

    def forward(
        self,
        input_: Tensor,
        weight: Tensor | None = None,
        runtime_gather_output: bool | None = None,
        *,
        labels: Tensor | None = None,
        loss_mask: Tensor | None = None,
        packing: Packing | None = None,
        temperature: float = 1.0,
        entropy_gradient: bool = True,
    ):
        """ColumnParallelLinear's (logits, bias) without labels, else log-prob and entropy (2, B, S) from hidden (S, B, H), or
        from (P / C, 1, H) if packed."""
        if labels is None:
            return super().forward(input_, weight, runtime_gather_output)
        if self.sequence_parallel:
            input_ = gather_from_sequence_parallel_region(input_, group=self.tp_group)
        rows_T, slots_T = rows_and_slots(loss_mask, packing)
        hidden_TH = input_.flatten(0, 1).index_select(0, rows_T)
        if not self.sequence_parallel:
            # After the selection, so that its backward all-reduces trained rows only, and a contiguous gradient: of any other
            # Megatron's `_reduce` sums a copy and returns the unsummed original.
            hidden_TH = copy_to_tensor_model_parallel_region(hidden_TH, group=self.tp_group)
        log_prob_T, entropy_T = vocab_parallel_log_prob_and_entropy(
            hidden_TH,
            self.weight if weight is None else weight,
            labels.reshape(-1)[slots_T],
            vocab_size=self.true_vocab_size,
            chunk_tokens=self.chunk_tokens,
            temperature=temperature,
            tp_group=self.tp_group,
        )
        if not entropy_gradient:
            entropy_T = entropy_T.detach()
        output = log_prob_T.new_zeros(2, labels.numel()).index_copy(1, slots_T, torch.stack([log_prob_T, entropy_T]))
        return output.view(2, *labels.shape)
