"""Losses of the compared methods on demonstrations, and on rollouts beside them. Shapes and rules as in losses.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from nemo_amft.algorithms.losses import Aggregation, PolicyLoss, mean_of, token_sum, token_weights, weighted_sum
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
    temperature here.
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
        off = mask & (extras["off_policy"] > 0)
        off_policy = OffPolicyLoss(self.kind, self.shaping, self.policy.aggregation, self.policy.constant)
        on_loss, on_metrics = self.policy(log_prob, entropy, mask & ~off, extras, totals)
        off_loss, off_metrics = off_policy(log_prob, entropy, off, extras, totals)
        return on_loss + off_loss, on_metrics | off_metrics


@dataclass(frozen=True)
class WeightedNLL:
    """Negative log-likelihood with a weight a token that carries no gradient; token mean over the global batch.

    none: 1. phi: p (1 - p), CHORD-phi (arXiv 2508.11408): large where the policy is undecided about the token, none where it
    is sure either way. entropy: `scale` * exp(-H), SRFT's w_SFT, H being the sequence's mean entropy, or with extras
    `mean_entropy` [B, 1] the batch's.
    """

    weight: Literal["none", "phi", "entropy"] = "none"
    scale: float = 1.0
    name: str = "sft"

    entropy_gradient = False

    @property
    def metrics(self) -> tuple[str, ...]:
        return (f"loss/{self.name}", f"entropy/{self.name}", f"weight/{self.name}")

    def __call__(
        self, log_prob: Tensor, entropy: Tensor, mask: Tensor, extras: dict[str, Tensor], totals: Totals
    ) -> LossAndMetrics:
        weights = token_weights(mask, "token_mean", totals, 1)
        factor = self.scale * self._factor(log_prob.detach(), entropy.detach(), mask, extras)
        loss = -(torch.where(mask, log_prob * factor, 0.0) * weights).sum()
        return loss, {
            f"loss/{self.name}": token_sum(-log_prob, mask),
            f"entropy/{self.name}": token_sum(entropy, mask),
            f"weight/{self.name}": token_sum(factor.expand_as(log_prob), mask),
        }

    def _factor(self, log_prob: Tensor, entropy: Tensor, mask: Tensor, extras: dict[str, Tensor]) -> Tensor:
        if self.weight == "phi":
            prob = log_prob.exp()
            return prob * (1 - prob)
        if self.weight == "entropy":
            return torch.exp(-extras.get("mean_entropy", mean_of(entropy, mask)))
        return torch.ones_like(log_prob)


@dataclass(frozen=True)
class SelfImitationLoss:
    """SRFT's term on the policy's own rollouts (arXiv 2506.19767, Eqs. 10-12): w_RL NLL(correct) - NLL(wrong), token mean.

    w_RL = `scale` * exp(H) without gradient, H as in WeightedNLL. extras: `correct` [B, 1].

    Nothing bounds the second part from below: a wrong token's probability can be pushed to 0 for ever. `negative_floor`, if
    given, stops at tokens whose log-prob is below it.
    """

    scale: float = 0.1
    negative_floor: float | None = None

    metrics = ("loss/rl", "entropy/rl", "weight/correct", "negative/stopped")
    entropy_gradient = False

    def __call__(
        self, log_prob: Tensor, entropy: Tensor, mask: Tensor, extras: dict[str, Tensor], totals: Totals
    ) -> LossAndMetrics:
        weights = token_weights(mask, "token_mean", totals, 1)
        correct = extras["correct"] > 0
        factor = self.scale * torch.exp(extras.get("mean_entropy", mean_of(entropy.detach(), mask)))
        floor = -torch.inf if self.negative_floor is None else self.negative_floor
        stopped = mask & ~correct & (log_prob.detach() < floor)
        signed = torch.where(correct, factor, -1.0) * -log_prob
        per_token = torch.where(mask & ~stopped, signed, 0.0)
        return (per_token * weights).sum(), {
            "loss/rl": weighted_sum(per_token, mask, weights, totals),
            "entropy/rl": token_sum(entropy, mask),
            "weight/correct": token_sum(factor.expand_as(log_prob), mask & correct),
            "negative/stopped": token_sum(stopped.float(), mask & ~correct),
        }


@dataclass(frozen=True)
class AnchoredNLL:
    """NLL + kl_coef KL(policy || base), token mean (SRFT, appendix B: its SFT_KL baseline).

    extras: `reference_log_prob` [B, S]. The KL is estimated on the demonstration's tokens by r - 1 - log r with r = base /
    policy. Those tokens are not the policy's own, so this is no unbiased estimate of the KL; it is 0 where the two agree on the
    demonstrations, positive elsewhere, and needs no logits of two models at a time.
    """

    kl_coef: float = 0.2

    metrics = ("loss/sft", "entropy/sft", "kl/reference")
    entropy_gradient = False

    def __call__(
        self, log_prob: Tensor, entropy: Tensor, mask: Tensor, extras: dict[str, Tensor], totals: Totals
    ) -> LossAndMetrics:
        weights = token_weights(mask, "token_mean", totals, 1)
        back = torch.where(mask, extras["reference_log_prob"] - log_prob, 0.0)
        kl = torch.expm1(back) - back
        loss = (torch.where(mask, self.kl_coef * kl - log_prob, 0.0) * weights).sum()
        return loss, {
            "loss/sft": token_sum(-log_prob, mask),
            "entropy/sft": token_sum(entropy, mask),
            "kl/reference": token_sum(kl, mask),
        }
