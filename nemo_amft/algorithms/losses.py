"""Losses as pure functions of tensors. Shapes: B sequences, S positions of a micro-batch; position i predicts token i + 1.

Each returns (loss, metrics): the loss is this micro-batch's part of the global mean, because its weights already carry the
global denominators, so any split of the batch adds up to the same number. Metrics are (sum, count) pairs of detached tensors. A
micro-batch without trained tokens gives an exact zero that still carries the graph.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from nemo_amft.types import LossAndMetrics, Metrics, TokenLoss, Totals

Aggregation = Literal["token_mean", "seq_mean_token_sum_norm", "seq_mean_token_mean"]


def token_weights(mask_BS: Tensor, how: Aggregation, totals: Totals, constant: int) -> Tensor:
    """Weight of each token in the global loss, float32 [B, S].

    token_mean: 1 / tokens of the global batch. seq_mean_token_sum_norm: 1 / (sequences * constant), Dr.GRPO's constant divisor
    (arXiv 2503.20783). seq_mean_token_mean: 1 / (sequences * tokens of the own sequence), GRPO's original.
    """
    mask = mask_BS.float()
    if how == "token_mean":
        return mask / max(totals.tokens, 1)
    if how == "seq_mean_token_sum_norm":
        return mask / (max(totals.sequences, 1) * constant)
    return mask / (max(totals.sequences, 1) * mask.sum(-1, keepdim=True).clamp(min=1))


def token_sum(values_BS: Tensor, mask_BS: Tensor) -> tuple[Tensor, Tensor]:
    """(sum, count) over trained tokens; what stands at untrained positions never enters, NaN included."""
    return torch.where(mask_BS, values_BS.detach(), 0.0).double().sum(), mask_BS.sum()


def weighted_sum(values_BS: Tensor, mask_BS: Tensor, weights_BS: Tensor, totals: Totals) -> tuple[Tensor, Tensor]:
    """A loss whose weights already hold the global denominators, as (sum, count) with counts that add up to `totals.tokens`."""
    total = torch.where(mask_BS, values_BS.detach() * weights_BS, 0.0).double().sum()
    return total * max(totals.tokens, 1), mask_BS.sum()


def mean_of(values_BS: Tensor, mask_BS: Tensor) -> Tensor:
    """Mean over each sequence's trained tokens, [B, 1]; 0 for a sequence without any."""
    return torch.where(mask_BS, values_BS, 0.0).sum(-1, keepdim=True) / mask_BS.sum(-1, keepdim=True).clamp(min=1)


CLAMPED = "loss/clamped_tokens"
"""Tokens whose log-ratio, any of those that a loss uses, was clamped; summed over the global batch."""

MAX_LOG_RATIO = 20.0
"""Log-ratios of two policies are held within +-20: ratios stay below 4.9e8, and what is made of them finite in fp32. A token
beyond has no gradient through its ratio, and is counted."""


def log_ratio(new_BS: Tensor, old_BS: Tensor, mask_BS: Tensor) -> tuple[Tensor, Tensor]:
    """log(new / old) of each trained token within +-MAX_LOG_RATIO, 0 elsewhere; and which tokens had to be held there. NaN
    stays NaN: it is no ratio, and must be seen."""
    gap = torch.where(mask_BS, new_BS - old_BS, 0.0)
    return gap.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO), gap.detach().abs() > MAX_LOG_RATIO


def k3(log_ratio_BS: Tensor) -> Tensor:
    """r - 1 - log r: Schulman's estimator of KL(p || q) on tokens drawn from p, with r = q / p; never negative."""
    return torch.expm1(log_ratio_BS) - log_ratio_BS


@dataclass(frozen=True)
class SFTLoss:
    """Mean negative log-likelihood of the demonstrations' tokens (paper, Eq. 2), token mean over the global batch."""

    metrics = ("loss/sft", "entropy/sft")
    entropy_gradient = False

    def __call__(
        self, log_prob: Tensor, entropy: Tensor, mask: Tensor, extras: dict[str, Tensor], totals: Totals
    ) -> LossAndMetrics:
        weights = token_weights(mask, "token_mean", totals, 1)
        return -(log_prob * weights).sum(), {"loss/sft": token_sum(-log_prob, mask), "entropy/sft": token_sum(entropy, mask)}


@dataclass(frozen=True)
class BySource:
    """A loss on demonstrations, and beside it their mean negative log-likelihood for each source.

    extras: those of `loss`, and `source` [B, 1], each sequence's place in `sources`.
    """

    loss: TokenLoss
    sources: tuple[str, ...]

    @property
    def entropy_gradient(self) -> bool:
        return self.loss.entropy_gradient

    @property
    def metrics(self) -> tuple[str, ...]:
        return (*self.loss.metrics, *(f"loss/sft/{source}" for source in self.sources))

    def __call__(
        self, log_prob: Tensor, entropy: Tensor, mask: Tensor, extras: dict[str, Tensor], totals: Totals
    ) -> LossAndMetrics:
        loss, metrics = self.loss(log_prob, entropy, mask, extras, totals)
        for place, source in enumerate(self.sources):
            metrics[f"loss/sft/{source}"] = token_sum(-log_prob, mask & (extras["source"] == place))
        return loss, metrics


@dataclass(frozen=True)
class PolicyLoss:
    """PPO's clipped surrogate (arXiv 1707.06347, Eq. 7), with options that are off by default.

    extras: `advantage` [B, S]; `behavior_log_prob` [B, S] of the rollout engine; `old_log_prob` [B, S] where several updates
    are made from one rollout batch (absent: the policy before the update is the policy itself, so the ratio is 1 and only its
    gradient counts); `reference_log_prob` [B, S] where kl_coef > 0.
    """

    clip_ratio: float = 0.2
    aggregation: Aggregation = "token_mean"
    constant: int = 1
    """Divisor of seq_mean_token_sum_norm: the longest response."""
    kl_coef: float = 0.0
    entropy_coef: float = 0.0
    importance_cap: float | None = None

    @property
    def entropy_gradient(self) -> bool:
        return self.entropy_coef != 0.0

    @property
    def metrics(self) -> tuple[str, ...]:
        kl = ("kl/reference",) if self.kl_coef else ()
        return ("loss/rl", "entropy/rl", "clip_fraction", "kl/rollout_vs_policy", "token_mult_prob_error", CLAMPED, *kl)

    def __call__(
        self, log_prob: Tensor, entropy: Tensor, mask: Tensor, extras: dict[str, Tensor], totals: Totals
    ) -> LossAndMetrics:
        weights = token_weights(mask, self.aggregation, totals, self.constant)
        old = extras.get("old_log_prob", log_prob.detach())
        advantage = extras["advantage"]
        moved, clamped = log_ratio(log_prob, old, mask)
        ratio = torch.exp(moved)
        surrogate = torch.minimum(ratio * advantage, ratio.clamp(1 - self.clip_ratio, 1 + self.clip_ratio) * advantage)
        # log(policy / rollout engine) of the sampled tokens: what the two programs disagree on.
        gap, far = log_ratio(old, extras["behavior_log_prob"], mask)
        clamped = clamped | far
        if self.importance_cap is not None:
            surrogate = surrogate * torch.exp(gap).clamp(max=self.importance_cap)
        per_token = -surrogate - self.entropy_coef * entropy
        metrics: Metrics = {
            "loss/rl": weighted_sum(-surrogate, mask, weights, totals),
            "entropy/rl": token_sum(entropy, mask),
            "clip_fraction": token_sum(((ratio - 1).abs() > self.clip_ratio).float(), mask),
            # KL(rollout || policy) on the rollout's tokens.
            "kl/rollout_vs_policy": token_sum(k3(gap), mask),
            "token_mult_prob_error": token_sum(torch.exp(gap.abs()), mask),
        }
        if self.kl_coef:
            # KL(policy || reference), as GRPO has it (arXiv 2402.03300, Eq. 4).
            back, far = log_ratio(extras["reference_log_prob"], log_prob, mask)
            kl, clamped = k3(back), clamped | far
            per_token = per_token + self.kl_coef * kl
            metrics["kl/reference"] = token_sum(kl, mask)
        metrics[CLAMPED] = token_sum(clamped.float(), mask)
        return (torch.where(mask, per_token, 0.0) * weights).sum(), metrics


@dataclass(frozen=True)
class UtilityLoss:
    """Score-function surrogate of U(theta) = E[R]: its gradient is the REINFORCE estimate of grad U, so it is not negated.

    extras: `advantage` [B, 1], the sample's reward over its leave-one-out baseline. Sum of token log-probs per sample, mean
    over samples.
    """

    metrics = ("utility",)
    entropy_gradient = False

    def __call__(
        self, log_prob: Tensor, entropy: Tensor, mask: Tensor, extras: dict[str, Tensor], totals: Totals
    ) -> LossAndMetrics:
        weights = token_weights(mask, "seq_mean_token_sum_norm", totals, 1)
        value = (log_prob * extras["advantage"] * weights).sum()
        return value, {"utility": (value.detach().double(), torch.ones((), device=mask.device))}


@dataclass(frozen=True)
class ValueLoss:
    """The critic's clipped squared error (PPO's reference implementation), half of the token mean.

    extras: `returns` [B, S] and `old_value` [B, S].
    """

    value_clip: float = 0.2

    metrics = ("loss/value", "value/returns", "value/returns_squared", "value/error_squared", "value/clip_fraction")

    def __call__(self, value: Tensor, mask: Tensor, extras: dict[str, Tensor], totals: Totals) -> LossAndMetrics:
        weights = token_weights(mask, "token_mean", totals, 1)
        returns, old = extras["returns"], extras["old_value"]
        error = (value - returns) ** 2
        squared, clipped = error, torch.zeros_like(mask)
        if self.value_clip:
            near = old + (value - old).clamp(-self.value_clip, self.value_clip)
            squared = torch.maximum(error, (near - returns) ** 2)
            clipped = squared > error
        loss = 0.5 * (torch.where(mask, squared, 0.0) * weights).sum()
        return loss, {
            "loss/value": token_sum(0.5 * squared, mask),
            "value/returns": token_sum(returns, mask),
            "value/returns_squared": token_sum(returns**2, mask),
            "value/error_squared": token_sum((old - returns) ** 2, mask),
            "value/clip_fraction": token_sum(clipped.float(), mask),
        }
