"""SASR (arXiv 2505.13026; formula from memory, not verified): a step is SFT or GRPO, drawn by the SFT gradient's norm."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from nemo_amft.algorithms.methods.base import Demonstration, Group, Method, RLConfig, Term, rl_term, sft_term
from nemo_amft.types import Example


@dataclass(frozen=True)
class SASRConfig:
    gamma: float = 1.0
    """Weight of the warm-up's gradient norm: the larger, the rarer SFT."""
    seed: int = 1
    """Seeds the draws."""
    rl: RLConfig = field(default_factory=lambda: RLConfig("grpo"))
    """The RL term."""


class SASR(Method):
    """SFT with probability p = G / (G + gamma G_warmup), else GRPO. G is the gradient norm of the last SFT step, G_warmup that
    of the last warm-up step; without a warm-up the first step is SFT and gives it."""

    Config = SASRConfig

    def __init__(self, config: SASRConfig, max_new_tokens: int):
        super().__init__(config, max_new_tokens)
        self.use_rl(config.rl)
        self.warmup_norm: float | None = None
        self.last_norm: float | None = None
        self._imitates = False

    @property
    def probability(self) -> float:
        """That the next step is SFT."""
        if not self.warmup_norm or self.last_norm is None:
            return 1.0
        return self.last_norm / (self.last_norm + self.config.gamma * self.warmup_norm)

    def prompts(self, step: int, examples: Sequence[Example]) -> list[Example]:
        # A draw that belongs to (seed, step): the same on every rank, and after a resume.
        self._imitates = random.Random(f"{self.config.seed} {step}").random() < self.probability
        return [] if self._imitates else list(examples)

    def compose(self, step: int, groups: Sequence[Group], demonstrations: Sequence[Demonstration]) -> list[Term]:
        return [sft_term(demonstrations)] if self._imitates else [rl_term(groups, self.config.rl, self.max_new_tokens)]

    def observe(self, phase: str, step: int, metrics: Mapping[str, float]) -> None:
        if phase == "warmup":
            self.warmup_norm = self.last_norm = metrics.get("grad_norm/total", self.last_norm)
        elif self._imitates:
            self.last_norm = metrics["grad_norm/total"]
            self.warmup_norm = self.warmup_norm or self.last_norm

    def metrics(self) -> dict[str, float]:
        return {"method/imitates": float(self._imitates), "method/sft_probability": self.probability}

    def state_dict(self) -> dict[str, Any]:
        return {"warmup_norm": self.warmup_norm, "last_norm": self.last_norm}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.warmup_norm, self.last_norm = state["warmup_norm"], state["last_norm"]
