"""AMFT's controller: mu from a meta-gradient and an entropy term (paper, Eq. 6 and Algorithm 2, lines 21-29)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from nemo_amft.algorithms.controllers.base import Controller, Observation


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


class AMFTController(Controller):
    """mu_{t+1} = clip(mu_t + eta_mu g_mu + eta_H (H* - H_t)); weights sft: mu_{t+1}, rl: 1 - mu_{t+1} (Eq. 6, Eq. 3)."""

    Config = AMFTControllerConfig

    def __init__(self, config: AMFTControllerConfig):
        super().__init__(config)
        # The term whose forward pass gives the entropy has to run before the weights are set.
        self.first_term = "sft" if config.entropy_source == "sft_batch" else "rl"
        self.mu = config.mu_init
        self.skipped = 0
        """Terms that were not finite."""
        self.missed = 0
        """Meta-updates that were due and found no kept difference: after an update that was skipped, or a resume on another
        layout."""
        self._last: dict[str, float] = {}

    def wants_meta_gradient(self, step: int) -> bool:
        """t mod K = 0, but never at t = 0: no theta_{t-1} exists there."""
        return self.config.eta_mu != 0.0 and step > 0 and step % self.config.meta_every == 0

    def wants_difference(self, step: int) -> bool:
        """Only the step before a meta-update is kept apart; with a trace, every step is part of it."""
        if self.config.eta_mu == 0.0:
            return False
        return self.config.meta_gradient.trace_decay > 0.0 or self.wants_meta_gradient(step + 1)

    def update(self, seen: Observation) -> dict[str, float]:
        """Algorithm 2, lines 22-29. What is not finite contributes 0 and is counted; the two terms are logged apart."""
        config = self.config
        meta_term, entropy_term = 0.0, 0.0
        if seen.meta is not None:
            meta_term = self._finite(config.eta_mu * seen.meta.value)
        elif self.wants_meta_gradient(seen.step):
            self.missed += 1
        entropy = seen.metrics.get(self.entropy_metric)
        if config.eta_h != 0.0 and entropy is not None and seen.target_entropy is not None:
            entropy_term = self._finite(config.eta_h * config.entropy_sign * (seen.target_entropy - entropy))
        self.mu = min(max(self.mu + meta_term + entropy_term, config.mu_min), config.mu_max)
        self._last = {"mu/meta_term": meta_term, "mu/entropy_term": entropy_term}
        return {"sft": self.mu, "rl": 1.0 - self.mu}

    def _finite(self, term: float) -> float:
        if math.isfinite(term):
            return term
        self.skipped += 1
        return 0.0

    def metrics(self) -> dict[str, float]:
        return {"mu": self.mu, **self._last, "mu/skipped": float(self.skipped), "mu/missed": float(self.missed)}

    def state_dict(self) -> dict[str, Any]:
        return {"mu": self.mu, "skipped": self.skipped, "missed": self.missed}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.mu, self.skipped, self.missed = state["mu"], state["skipped"], state["missed"]
