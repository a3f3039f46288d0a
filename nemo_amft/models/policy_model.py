"""The policy: Megatron's GPT model whose output layer turns labels into log-probs and entropies.

Shapes: B sequences, S positions, T trained positions of the micro-batch, H hidden, V this rank's rows of the vocabulary.
"""

from __future__ import annotations

import torch
from megatron.core.models.gpt import GPTModel
from megatron.core.tensor_parallel import (
    ColumnParallelLinear,
    copy_to_tensor_model_parallel_region,
    gather_from_sequence_parallel_region,
)
from torch import Tensor

from nemo_amft.models.logprob import vocab_parallel_log_prob_and_entropy


class PolicyModel(GPTModel):
    """One pipeline chunk of the policy.

    Without labels it is GPTModel (logits, inference contexts), except that columns that pad the vocabulary never win: they are
    cut off gathered logits and -inf in a tensor-parallel shard.

    With `labels` (B, S) int64 and `loss_mask` (B, S) bool the last stage returns float32 (2, B, S): log-prob and entropy of the
    token predicted AT each position, so the caller shifts labels left by one. Positions outside the mask are 0, and do not
    pass through the output layer. Under sequence parallelism S is a multiple of the tensor-parallel size.
    """

    def __init__(self, *args, true_vocab_size: int, logprob_chunk_tokens: int, **kwargs):
        """Args are GPTModel's, `vocab_size` being the padded one. `true_vocab_size` counts the tokens there really are."""
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

    def _postprocess(self, *, hidden_states, labels, loss_mask, runtime_gather_output=None, **kwargs) -> Tensor:
        if labels is not None and self.post_process:
            weight = self.shared_embedding_or_output_weight() if self.share_embeddings_and_output_weights else None
            return self.output_layer(
                hidden_states,
                weight=weight,
                labels=labels,
                loss_mask=loss_mask,
                temperature=self.logprob_temperature,
                entropy_gradient=self.entropy_gradient,
            )
        output = super()._postprocess(
            hidden_states=hidden_states,
            labels=None,
            loss_mask=loss_mask,
            runtime_gather_output=runtime_gather_output,
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
        temperature: float = 1.0,
        entropy_gradient: bool = True,
    ):
        """ColumnParallelLinear's (logits, bias) without labels, else log-prob and entropy (2, B, S) from hidden (S, B, H)."""
        if labels is None:
            return super().forward(input_, weight, runtime_gather_output)
        if self.sequence_parallel:
            input_ = gather_from_sequence_parallel_region(input_, group=self.tp_group)
        sequence_T, position_T = loss_mask.nonzero(as_tuple=True)
        hidden_TH = input_.flatten(0, 1).index_select(0, position_T * labels.size(0) + sequence_T)
        if not self.sequence_parallel:
            # After the selection, so that its backward all-reduces trained rows only, and a contiguous gradient: of any other
            # Megatron's `_reduce` sums a copy and returns the unsummed original.
            hidden_TH = copy_to_tensor_model_parallel_region(hidden_TH, group=self.tp_group)
        log_prob_T, entropy_T = vocab_parallel_log_prob_and_entropy(
            hidden_TH,
            self.weight if weight is None else weight,
            labels[loss_mask],
            vocab_size=self.true_vocab_size,
            chunk_tokens=self.chunk_tokens,
            temperature=temperature,
            tp_group=self.tp_group,
        )
        if not entropy_gradient:
            entropy_T = entropy_T.detach()
        output_2BS = log_prob_T.new_zeros(2, *labels.shape)
        return output_2BS.masked_scatter(loss_mask, torch.stack([log_prob_T, entropy_T]))
