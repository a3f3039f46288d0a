"""RL alone: GRPO, Dr.GRPO, RLOO and PPO, which differ in `rl` only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from nemo_amft.algorithms.methods.base import Demonstration, Group, Method, RLConfig, Term, rl_term


@dataclass(frozen=True)
class PolicyGradientConfig:
    rl: RLConfig = field(default_factory=lambda: RLConfig(advantage="grpo"))
    """The RL term."""


class PolicyGradient(Method):
    """One term, `rl`, over all rollouts of the step."""

    Config = PolicyGradientConfig
    has_both_terms = False

    def __init__(self, config: PolicyGradientConfig, longest_response: int):
        super().__init__(config, longest_response)
        self.use_rl(config.rl)

    def demonstrations_per_step(self, configured: int) -> int:
        return 0

    def compose(self, step: int, groups: Sequence[Group], demonstrations: Sequence[Demonstration]) -> list[Term]:
        """L_RL on the rollouts."""
        return [rl_term(groups, self.config.rl, self.longest_response)]
