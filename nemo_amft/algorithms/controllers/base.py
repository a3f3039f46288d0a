"""What a controller is: it turns what a step measured into the weights of the step's loss terms."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nemo_amft.types import MetaGradient


@dataclass(frozen=True)
class Observation:
    """What step t knows when its weights are set: the same on every rank."""

    step: int
    """t, counted from 0."""
    metrics: Mapping[str, float]
    """entropy/sft or entropy/rl (of the first term), reward/mean ... of this step, where measured."""
    target_entropy: float | None = None
    """H*, None without warm-up."""
    meta: MetaGradient | None = None
    """The meta-gradient, on a meta-update step."""


class Controller:
    """Base of controllers, one per file: sets the weights. Plain state, no process group, no I/O.

    `Config` is a frozen dataclass with a documented default for every key.
    """

    Config: type
    first_term = "sft"
    """Name of the loss term that runs before the weights are set, so that `update` has seen its metrics."""

    def __init__(self, config: Any):
        self.config = config

    @property
    def entropy_metric(self) -> str:
        """The metric that is logged as `entropy`, and whose value after warm-up is H*."""
        return f"entropy/{self.first_term}"

    def wants_difference(self, step: int) -> bool:
        """Whether g_SFT and g_RL of this step must be kept apart."""
        return False

    def wants_meta_gradient(self, step: int) -> bool:
        """Whether this step needs grad U (and a kept difference of the step before)."""
        return False

    def update(self, seen: Observation) -> dict[str, float]:
        """The weight of each loss term, by the term's name."""
        raise NotImplementedError

    def metrics(self) -> dict[str, float]:
        """What the last update did, for the log; `mu` where there is one."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """JSON-ready state."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
