"""The policy: log-probs of sequences, and gradients of loss terms over them."""

from __future__ import annotations

import torch

from nemo_amft.data.batching import Batch, MicroBatch
from nemo_amft.models.trainable import TrainableModel, policy_forward
from nemo_amft.parallel.reductions import Sums, reduce_sums
from nemo_amft.types import TokenLoss, Totals


class Policy(TrainableModel):
    """A trainable policy. Log-probs of rollouts are taken at the temperature they were sampled at; demonstrations' at 1."""

    def accumulate_term(self, share: Batch, loss: TokenLoss, weight: float, *, temperature: float = 1.0, last: bool) -> Sums:
        """Add `weight` times the gradient of a loss term to the buffer. Returns its metrics over the global batch, on every
        rank."""
        totals = Totals(share.total_tokens, share.total_sequences)

        def loss_fn(output: torch.Tensor, micro: MicroBatch):
            return loss(output[0], output[1], micro.mask, micro.extras, totals)

        self.set_pass(temperature, loss.entropy_gradient)
        parts = self.accumulate(self.micro_batches(share), policy_forward, loss_fn, weight, last)
        return reduce_sums(parts, (*loss.metrics, "padding"), self.place)

    def entropies(self, share: Batch, *, temperature: float = 1.0) -> list[torch.Tensor]:
        """Entropy in nats of the distribution each trained token was predicted from, 0 elsewhere: one float32 [T] a
        sequence."""
        self.set_pass(temperature)
        return self.forward(share, policy_forward, lambda output: output[1])
