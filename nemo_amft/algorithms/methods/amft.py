"""AMFT: demonstrations and on-policy rollouts in every step, weighted mu and 1 - mu (paper, Algorithm 2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from nemo_amft.algorithms.methods.base import Demonstration, Group, Method, RLConfig, Term, rl_term, sft_term


@dataclass(frozen=True)
class AMFTConfig:
    rl: RLConfig = field(default_factory=RLConfig)
    """The RL term."""


class AMFT(Method):
    """Both terms over the whole step's batch; the controller's weights are mu (sft) and 1 - mu (rl)."""

    Config = AMFTConfig

    def __init__(self, config: AMFTConfig, longest_response: int):
        super().__init__(config, longest_response)
        self.use_rl(config.rl)

    def compose(self, step: int, groups: Sequence[Group], demonstrations: Sequence[Demonstration]) -> list[Term]:
        """L_SFT on the demonstrations, L_RL on the rollouts (Algorithm 2, lines 16-20)."""
        return [sft_term(demonstrations), rl_term(groups, self.config.rl, self.longest_response)]
