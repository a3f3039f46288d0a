"""SASR (arXiv 2505.13026; formula from memory, not verified): a step is SFT or GRPO, drawn by the SFT gradient's norm."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from nemo_amft.algorithms.methods.base import Demonstration, Group, GroupMethod, RLConfig, Term, rl_term, sft_term
from nemo_amft.types import Example

if TYPE_CHECKING:
    from nemo_amft.config.schema import DataConfig


@dataclass(frozen=True)
class SASRConfig:
    gamma: float = 1.0
    """Weight of the warm-up's gradient norm: the larger, the rarer SFT."""
    rl: RLConfig = field(default_factory=lambda: RLConfig("grpo"))
    """The RL term."""


class SASR(GroupMethod):
    """SFT with probability p = G / (G + gamma G_warmup), else GRPO. G is the gradient norm of the last SFT step, G_warmup that
    of the last warm-up step; without a warm-up the first step is SFT and gives it."""

    Config = SASRConfig
    needs_demonstrations = False

    def __init__(self, config: SASRConfig, longest_response: int):
        super().__init__(config, longest_response)
        self.warmup_norm: float | None = None
        self.last_norm: float | None = None
        self._imitates = False

    @property
    def probability(self) -> float:
        """That the next step is SFT."""
        if not self.warmup_norm or self.last_norm is None:
            return 1.0
        return self.last_norm / (self.last_norm + self.config.gamma * self.warmup_norm)

    def demonstrations_per_step(self, configured: int) -> int:
        return configured

    def most_imitated(self, data: DataConfig) -> int:
        return data.demonstrations_per_step

    def prompts(self, step: int, examples: Sequence[Example]) -> list[Example]:
        # What an SFT step leaves unused of the prompts is passed over.
        self._imitates = random.Random(f"{self.tools.run_seed}/sasr/{step}").random() < self.probability
        return [] if self._imitates else list(examples)

    def compose(self, step: int, groups: Sequence[Group], demonstrations: Sequence[Demonstration]) -> list[Term]:
        return [sft_term(demonstrations)] if self._imitates else [rl_term(groups, self.config.rl, self.longest_response)]

    def observe(self, phase: str, step: int, metrics: Mapping[str, float]) -> None:
        norm = metrics.get("grad_norm/total", math.nan)
        if not math.isfinite(norm):  # an update that was skipped says nothing
            return
        if phase == "warmup":
            self.warmup_norm = self.last_norm = norm
        elif self._imitates:
            self.last_norm = norm
            self.warmup_norm = self.warmup_norm or norm

    def metrics(self) -> dict[str, float]:
        return {"method/imitates": float(self._imitates), "method/sft_probability": self.probability}

    def state_dict(self) -> dict[str, Any]:
        return {"warmup_norm": self.warmup_norm, "last_norm": self.last_norm}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.warmup_norm, self.last_norm = state["warmup_norm"], state["last_norm"]
