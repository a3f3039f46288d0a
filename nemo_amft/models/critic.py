"""The critic: values of states, and one update on its own loss (paper, Algorithm 2, line 34)."""

from __future__ import annotations

from typing import Any

import torch

from nemo_amft.data.batching import Batch, MicroBatch
from nemo_amft.models.trainable import TrainableModel, call_model
from nemo_amft.parallel.reductions import Sums, reduce_sums
from nemo_amft.types import CriticLoss, Totals


def _forward(model: Any, micro: MicroBatch) -> torch.Tensor:
    return call_model(model, micro)


class Critic(TrainableModel):
    """A trainable value function. The value at a token is that of the state in which the token is chosen."""

    def values(self, share: Batch) -> list[torch.Tensor]:
        """One float32 [T] a sequence; only positions of trained tokens mean anything."""
        return self.forward(share, _forward)

    def update(self, share: Batch, loss: CriticLoss) -> tuple[Sums, float]:
        """One optimiser step on `share`, which carries `returns` and `old_value` per token. Returns (metrics, gradient
        norm)."""
        totals = Totals(share.total_tokens, share.total_sequences)

        def loss_fn(output: torch.Tensor, micro: MicroBatch):
            return loss(output, micro.mask, micro.extras, totals)

        self.zero_gradients()
        parts = self.accumulate(self.micro_batches(share), _forward, loss_fn, 1.0, last=True)
        self.finish_gradients()
        norm = self.step()
        return reduce_sums(parts, (*loss.metrics, "padding"), self.place), norm

    @torch.no_grad()
    def copy_body_from(self, policy: TrainableModel) -> None:
        """Start from the policy's present weights, the value head aside. Same layout, so no communication."""
        for mine, theirs in zip(self.chunks, policy.chunks, strict=True):
            source = dict(theirs.named_parameters())
            for name, parameter in mine.named_parameters():
                if name in source and source[name].shape == parameter.shape and "output_layer" not in name:
                    parameter.copy_(source[name])
        self.reload_parameters()
