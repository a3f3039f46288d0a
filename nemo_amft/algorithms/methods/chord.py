"""CHORD (arXiv 2508.11408): both terms in every step, their balance by a schedule; phi weighs tokens by p (1 - p)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from nemo_amft.algorithms.demonstration_losses import WeightedNLL
from nemo_amft.algorithms.methods.base import Demonstration, Group, Method, RLConfig, Term, rl_term, sft_term


@dataclass(frozen=True)
class CHORDConfig:
    phi: bool = False
    """Weight the demonstrations' tokens by p (1 - p), without gradient."""
    rl: RLConfig = field(default_factory=lambda: RLConfig("grpo"))
    """The RL term."""


class CHORD(Method):
    """(1 - mu) L_GRPO + mu L_SFT, each normalised by its own tokens; mu comes from controllers/schedule.py."""

    Config = CHORDConfig

    def __init__(self, config: CHORDConfig, longest_response: int):
        super().__init__(config, longest_response)
        self.use_rl(config.rl)

    def compose(self, step: int, groups: Sequence[Group], demonstrations: Sequence[Demonstration]) -> list[Term]:
        loss = WeightedNLL("phi") if self.config.phi else None
        return [sft_term(demonstrations, loss), rl_term(groups, self.config.rl, self.longest_response)]
