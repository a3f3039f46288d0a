"""mu as a function of the step alone (CHORD, arXiv 2508.11408): a linear rise to a peak, then a cosine to a valley."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nemo_amft.algorithms.controllers.base import Controller, Observation


@dataclass(frozen=True)
class ScheduleConfig:
    peak: float = 0.9
    """Largest mu, reached after the rise."""
    valley: float = 0.05
    """mu at the end of the fall, and from then on."""
    rise_steps: int = 0
    """Steps from 0 to the peak."""
    fall_steps: int = 200
    """Steps from the peak to the valley."""


class Schedule(Controller):
    """Weights sft: mu_t, rl: 1 - mu_t."""

    Config = ScheduleConfig

    def __init__(self, config: ScheduleConfig):
        super().__init__(config)
        self.mu = self.at(0)

    def at(self, step: int) -> float:
        """mu of a step, counted from 0."""
        config = self.config
        if step < config.rise_steps:
            return config.peak * step / config.rise_steps
        through = min((step - config.rise_steps) / max(config.fall_steps, 1), 1.0)
        return config.valley + (config.peak - config.valley) * (1 + math.cos(math.pi * through)) / 2

    def update(self, seen: Observation) -> dict[str, float]:
        self.mu = self.at(seen.step)
        return {"sft": self.mu, "rl": 1.0 - self.mu}

    def metrics(self) -> dict[str, float]:
        return {"mu": self.mu}

    def state_dict(self) -> dict[str, Any]:
        return {"mu": self.mu}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.mu = state["mu"]
