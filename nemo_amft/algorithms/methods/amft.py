"""AMFT: demonstrations and on-policy rollouts in every step, weighted mu and 1 - mu (paper, Algorithm 2)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class RLConfig:
    """The RL term, shared by every method that has one."""

    advantage: Literal["gae", "grpo", "dr_grpo", "rloo"] = "gae"
    """gae: PPO with a critic. grpo: (r - mean) / std over the group. dr_grpo: r - mean. rloo: r - mean of the others."""
    gamma: float = 1.0
    """Discount (paper, Table 6: 1)."""
    lam: float = 1.0
    """GAE's lambda."""
    whiten_advantages: bool = True
    """Normalise GAE advantages over the global batch."""
    clip_ratio: float = 0.2
    """PPO's clip range."""
    loss_aggregation: Literal["token_mean", "seq_mean_token_sum_norm", "seq_mean_token_mean"] = "token_mean"
    """token_mean: over all tokens of the global batch. seq_mean_token_sum_norm: token sums over a constant (Dr.GRPO)."""
    updates_per_rollout_batch: int = 1
    """Optimiser updates made from one rollout batch."""
    kl_coef: float = 0.0
    """Coefficient of KL(policy || frozen starting policy); 0 builds no reference model."""
    entropy_coef: float = 0.0
    """Coefficient of the entropy bonus."""
    importance_cap: float | None = None
    """Cap of the truncated importance weights policy / rollout engine; None: no weights."""


@dataclass(frozen=True)
class AMFTConfig:
    rl: RLConfig = field(default_factory=RLConfig)
    """The RL term."""
