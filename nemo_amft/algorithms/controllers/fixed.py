"""Constant weights: for methods that weigh their terms themselves, and for AMFT's simplest baseline, a constant mu."""

from __future__ import annotations

from dataclasses import dataclass

from nemo_amft.algorithms.controllers.base import Controller, Observation


@dataclass(frozen=True)
class FixedConfig:
    mu: float | None = None
    """Weights mu (sft) and 1 - mu (rl). None: 1 for every term."""


class Fixed(Controller):
    """The same weights in every step."""

    Config = FixedConfig

    def update(self, seen: Observation) -> dict[str, float]:
        return {} if self.config.mu is None else {"sft": self.config.mu, "rl": 1.0 - self.config.mu}

    def metrics(self) -> dict[str, float]:
        return {} if self.config.mu is None else {"mu": self.config.mu}
