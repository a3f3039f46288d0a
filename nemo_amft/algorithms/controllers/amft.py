"""AMFT's controller: mu from a meta-gradient and an entropy term (paper, Eq. 6 and Algorithm 2, lines 21-29)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class MetaGradientConfig:
    scale: Literal["raw", "cosine", "lr_free"] = "raw"
    """raw: Eq. 25 to the letter. cosine: the inner product over both norms, in [-1, 1]. lr_free: Eq. 25 without alpha."""
    preconditioner: Literal["sgd", "adam"] = "sgd"
    """sgd: Eq. 20's plain gradient step. adam: the exact derivative of the AdamW update, clipping included."""
    trace_decay: float = 0.0
    """Decay of the eligibility trace over the steps since the last meta-update; 0 is the paper's single step."""
    val_prompts: int = 64
    """Validation problems an estimate of grad U."""
    val_samples: int = 4
    """Responses a validation problem; at least 2, for the leave-one-out baseline."""


@dataclass(frozen=True)
class AMFTControllerConfig:
    mu_init: float = 0.5
    """mu_0 (paper, Table 7)."""
    mu_min: float = 0.05
    """Lower bound of mu (paper, Table 7)."""
    mu_max: float = 0.95
    """Upper bound of mu (paper, Table 7)."""
    eta_mu: float = 1e-4
    """Rate of the meta-gradient term (paper, Table 7); 0 is the ablation without it, and costs nothing."""
    eta_h: float = 5e-4
    """Rate of the entropy term (paper, Table 7); 0 is the ablation without it."""
    meta_every: int = 20
    """K, steps between meta-updates (paper, Table 7)."""
    entropy_sign: Literal[1, -1] = 1
    """+1: eta_H (H* - H), Eq. 6. -1: the opposite sign, as two bullets of the paper's section 3.2 describe it."""
    entropy_source: Literal["sft_batch", "rollouts"] = "sft_batch"
    """Tokens over which H is averaged: the step's demonstrations (teacher-forced) or the step's rollouts."""
    meta_gradient: MetaGradientConfig = field(default_factory=MetaGradientConfig)
    """How the meta-gradient is estimated."""
