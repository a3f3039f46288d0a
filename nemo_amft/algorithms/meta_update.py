"""Where the meta-gradient meets the model: what is kept of a step, and grad U from validation rollouts."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from megatron.core.tensor_parallel import param_is_not_tensor_parallel_duplicate
from megatron.core.transformer.module import param_is_not_shared

from nemo_amft.algorithms.advantages import leave_one_out
from nemo_amft.algorithms.controllers.amft import MetaGradientConfig
from nemo_amft.algorithms.losses import UtilityLoss
from nemo_amft.algorithms.meta_gradient import (
    InnerProduct,
    KeptDifference,
    MetaGradient,
    Shards,
    decay_trace,
    meta_gradient,
    through_adam,
    through_clipping,
)
from nemo_amft.algorithms.methods.base import Group
from nemo_amft.algorithms.update import UpdateResult
from nemo_amft.data.batching import Batch
from nemo_amft.models.policy import Policy
from nemo_amft.models.trainable import TrainableModel
from nemo_amft.parallel import platform


def inner_product(policy: TrainableModel) -> InnerProduct:
    """The inner product over the main parameters of policy or critic: each element of the model once.

    Which shards count is Megatron's own knowledge, the same that its gradient norm uses: not the second copy of tied
    embeddings, not what tensor-parallel ranks hold in duplicate. The group is the optimiser's: the model-parallel ranks, and
    with the distributed optimiser the data-parallel ones too, whose shards are then distinct.
    """
    with platform.megatron():
        owned = [param_is_not_shared(p) and param_is_not_tensor_parallel_duplicate(p) for p in policy.main_parameters()]
        group = policy.optimizer.get_grad_stats_parallel_group()

    def all_reduce(values: torch.Tensor) -> torch.Tensor:
        values = values.to(platform.device())
        dist.all_reduce(values, group=group)
        return values.cpu()

    return InnerProduct(owned, all_reduce)


def weight_norm(model: TrainableModel) -> float:
    """The norm of all weights of a model, each counted once. Collective."""
    parameters: Shards = [parameter.detach() for parameter in model.main_parameters()]
    (square,) = inner_product(model)((parameters, parameters))
    return square**0.5 if square >= 0.0 else square  # NaN stays NaN


class MetaUpdate:
    """Keeps what a meta-gradient needs of the step before, and estimates it."""

    def __init__(self, policy: Policy, config: MetaGradientConfig):
        self.policy, self.config = policy, config
        self.product = inner_product(policy)
        self.kept: KeptDifference | None = None

    def keep(self, step: int, learning_rate: float, result: UpdateResult) -> dict[str, float]:
        """Take over the difference of the step just made. Returns metrics."""
        assert result.difference is not None
        assert result.clipped is not None
        if self.config.preconditioner == "adam":
            optim = self.policy.optim_config
            through_clipping(result.difference, result.clipped, result.grad_norm, optim.clip_grad, self.product)
            states, steps = self._adam_states()
            through_adam(result.difference, result.clipped, states, optim.betas, optim.eps, steps)
        direction = result.difference
        if self.kept is not None and self.config.trace_decay > 0.0 and learning_rate > 0.0:
            # Each step of the trace moved theta by its own learning rate; the product outside has the last one's.
            decay = self.config.trace_decay * self.kept.learning_rate / learning_rate
            direction = decay_trace(self.kept.direction, direction, decay)
        self.kept = KeptDifference(direction, learning_rate, step)
        return {"memory/kept_difference": float(self.kept.num_bytes)}

    def _adam_states(self) -> tuple[list[dict], list[int]]:
        states, steps = [], []
        for member in self.policy._optimizers():
            for group in member.optimizer.param_groups:
                for parameter in group["params"]:
                    state = member.optimizer.state[parameter]
                    states.append(state)
                    # torch counts steps per parameter, fused Adam per group.
                    steps.append(int(state["step"] if "step" in state else group["step"]))
        return states, steps

    def estimate(self, groups: Sequence[Group], temperature: float) -> MetaGradient:
        """g_mu at theta_t, from graded validation rollouts of theta_t. Empties the gradient buffer and what was kept."""
        assert self.kept is not None
        samples = [sample for group in groups for sample in group.samples]
        advantage = [a for group in groups for a in leave_one_out(group.rewards)]
        batch = Batch.whole([s.sequence for s in samples], advantage=advantage)
        share = batch.share(self.policy.place)
        self.policy.zero_gradients()
        self.policy.accumulate_term(share, UtilityLoss(), 1.0, temperature=temperature, last=True)
        self.policy.finish_gradients()
        grad_u: Shards = self.policy.main_gradients()
        estimate = meta_gradient(grad_u, self.kept, self.config.scale, self.product)
        self.kept = None
        self.policy.zero_gradients()
        return estimate
