"""Losses of the compared methods on demonstrations, and on rollouts beside them. Shapes and rules as in losses.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from nemo_amft.algorithms.losses import (
    CLAMPED,
    Aggregation,
    PolicyLoss,
    k3,
    log_ratio,
    mean_of,
    token_sum,
    token_weights,
    weighted_sum,
)
from nemo_amft.types import LossAndMetrics, Totals


@dataclass(frozen=True)
class OffPolicyLoss:
    """-A f(pi) on demonstrations, whose behaviour probability is taken to be 1.

    extras: `advantage` [B, 1]. f, of the policy's token probability p: shaped: p / (p + shaping), LUFFY (arXiv 2504.14945):
    its gradient does not die where p is small. ratio: p, the importance ratio p / 1 without clipping, SRFT (arXiv 2506.19767).
    log_prob: log p, so that the gradient is that of a ratio of 1 (DyME, arXiv 2506.23061).
    """

    kind: Literal["shaped", "ratio", "log_prob"] = "shaped"
    shaping: float = 0.1
    aggregation: Aggregation = "token_mean"
    constant: int = 1

    metrics = ("loss/off_policy", "off_policy/prob")
    entropy_gradient = False

    def __call__(
        self, log_prob: Tensor, entropy: Tensor, mask: Tensor, extras: dict[str, Tensor], totals: Totals
    ) -> LossAndMetrics:
        weights = token_weights(mask, self.aggregation, totals, self.constant)
        log_prob = torch.where(mask, log_prob, 0.0)
        prob = torch.exp(log_prob)
        value = {"shaped": prob / (prob + self.shaping), "ratio": prob, "log_prob": log_prob}[self.kind]
        per_token = -value * extras["advantage"]
        return (per_token * weights).sum(), {
            "loss/off_policy": weighted_sum(per_token, mask, weights, totals),
            "off_policy/prob": token_sum(prob, mask),
        }


@dataclass(frozen=True)
class MixedPolicyLoss:
    """PPO's clipped surrogate on rollouts and OffPolicyLoss on the demonstrations among them, with one denominator.

    extras: those of PolicyLoss, and `off_policy` [B, 1], 1 for a demonstration. Demonstrations' log-probs are at the rollouts'
    temperature here. The entropy bonus is over both, as in LUFFY's code; a KL penalty is over rollouts alone.
    """

    policy: PolicyLoss
    kind: Literal["shaped", "ratio", "log_prob"] = "shaped"
    shaping: float = 0.1

    @property
    def entropy_gradient(self) -> bool:
        return self.policy.entropy_gradient

    @property
    def metrics(self) -> tuple[str, ...]:
        return (*self.policy.metrics, *OffPolicyLoss.metrics)

    def __call__(
        self, log_prob: Tensor, entropy: Tensor, mask: Tensor, extras: dict[str, Tensor], totals: Totals
    ) -> LossAndMetrics:
        policy = self.policy
        off = mask & (extras["off_policy"] > 0)
        off_policy = OffPolicyLoss(self.kind, self.shaping, policy.aggregation, policy.constant)
        on_loss, on_metrics = policy(log_prob, entropy, mask & ~off, extras, totals)
        off_loss, off_metrics = off_policy(log_prob, entropy, off, extras, totals)
        loss = on_loss + off_loss
        if policy.entropy_coef:
            weights = token_weights(off, policy.aggregation, totals, policy.constant)
            loss = loss - policy.entropy_coef * (torch.where(off, entropy, 0.0) * weights).sum()
        metrics = on_metrics | off_metrics
        for name in ("loss/rl", "loss/off_policy"):  # parts of one mean: both over all tokens, so that they add up to it
            metrics[name] = (metrics[name][0], mask.sum())
        return loss, metrics


@dataclass(frozen=True)
class WeightedNLL:
    """Negative log-likelihood with a weight a token that carries no gradient; token mean over the global batch.

    phi: p (1 - p), CHORD-phi (arXiv 2508.11408): large where the policy is undecided about the token, none where it is sure
    either way. entropy: exp(-H), SRFT's w_SFT over its scale, H being the sequence's mean entropy. `scale` multiplies either.
    """

    weight: Literal["phi", "entropy"]
    scale: float = 1.0

    metrics = ("loss/sft", "entropy/sft", "weight/sft")
    entropy_gradient = False

    def __call__(
        self, log_prob: Tensor, entropy: Tensor, mask: Tensor, extras: dict[str, Tensor], totals: Totals
    ) -> LossAndMetrics:
        weights = token_weights(mask, "token_mean", totals, 1)
        log_prob = torch.where(mask, log_prob, 0.0)
        prob = log_prob.detach().exp()
        factor = self.scale * (prob * (1 - prob) if self.weight == "phi" else torch.exp(-mean_of(entropy.detach(), mask)))
        return -(log_prob * factor * weights).sum(), {
            "loss/sft": token_sum(-log_prob, mask),
            "entropy/sft": token_sum(entropy, mask),
            "weight/sft": token_sum(factor.expand_as(log_prob), mask),
        }


@dataclass(frozen=True)
class SelfImitationLoss:
    """SRFT's term on the policy's own rollouts (arXiv 2506.19767, Eqs. 10-12): w_RL NLL(correct) - NLL(wrong).

    w_RL = `scale` * exp(H) without gradient, H the sequence's mean entropy. extras: `correct` [B, 1]; `old_log_prob` [B, S]
    where several updates are made from one rollout batch.

    Nothing bounds the second part from below: it falls for ever as a wrong token's probability goes to 0. `form` is what stands
    for log p in both parts: log_prob: the paper's. prob: p itself, between 0 and 1. ratio: p over the old policy's, whose
    gradient is that of log_prob in the first update of a rollout batch.
    """

    scale: float = 0.1
    form: Literal["log_prob", "prob", "ratio"] = "log_prob"
    aggregation: Aggregation = "token_mean"
    constant: int = 1
    entropy_coef: float = 0.0

    metrics = ("loss/rl", "entropy/rl", "weight/correct", CLAMPED)

    @property
    def entropy_gradient(self) -> bool:
        return self.entropy_coef != 0.0

    def __call__(
        self, log_prob: Tensor, entropy: Tensor, mask: Tensor, extras: dict[str, Tensor], totals: Totals
    ) -> LossAndMetrics:
        weights = token_weights(mask, self.aggregation, totals, self.constant)
        correct = extras["correct"] > 0
        factor = self.scale * torch.exp(mean_of(entropy.detach(), mask))
        log_prob = torch.where(mask, log_prob, 0.0)
        value, clamped = log_prob, torch.zeros_like(mask)
        if self.form == "prob":
            value = torch.exp(log_prob)
        elif self.form == "ratio":
            moved, clamped = log_ratio(log_prob, extras.get("old_log_prob", log_prob.detach()), mask)
            value = torch.exp(moved)
        per_token = -torch.where(correct, factor, -1.0) * value
        bonus = torch.where(mask, self.entropy_coef * entropy, 0.0)
        return ((per_token - bonus) * weights).sum(), {
            "loss/rl": weighted_sum(per_token, mask, weights, totals),
            "entropy/rl": token_sum(entropy, mask),
            "weight/correct": token_sum(factor.expand_as(log_prob), mask & correct),
            CLAMPED: token_sum(clamped.float(), mask),
        }


@dataclass(frozen=True)
class AnchoredNLL:
    """NLL + kl_coef KL(policy || base), token mean (SRFT, appendix B: its SFT_KL baseline).

    extras: `reference_log_prob` [B, S]. The KL is estimated on the demonstration's tokens by r - 1 - log r with r = base /
    policy. Those tokens are not the policy's own, so this is no unbiased estimate of the KL; it is 0 where the two agree on the
    demonstrations, positive elsewhere, and needs no logits of two models at a time.
    """

    kl_coef: float = 0.2

    metrics = ("loss/sft", "entropy/sft", "kl/reference", CLAMPED)
    entropy_gradient = False

    def __call__(
        self, log_prob: Tensor, entropy: Tensor, mask: Tensor, extras: dict[str, Tensor], totals: Totals
    ) -> LossAndMetrics:
        weights = token_weights(mask, "token_mean", totals, 1)
        back, clamped = log_ratio(extras["reference_log_prob"], log_prob, mask)
        kl = k3(back)
        loss = (torch.where(mask, self.kl_coef * kl - log_prob, 0.0) * weights).sum()
        return loss, {
            "loss/sft": token_sum(-log_prob, mask),
            "entropy/sft": token_sum(entropy, mask),
            "kl/reference": token_sum(kl, mask),
            CLAMPED: token_sum(clamped.float(), mask),
        }
