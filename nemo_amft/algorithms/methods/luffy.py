"""LUFFY (arXiv 2504.14945): each prompt's demonstration joins its group of rollouts, off-policy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from nemo_amft.algorithms.demonstration_losses import MixedPolicyLoss
from nemo_amft.algorithms.methods.base import (
    Demonstration,
    Group,
    GroupMethod,
    RLConfig,
    Sample,
    Term,
    policy_loss,
    rl_term,
)


@dataclass(frozen=True)
class LUFFYConfig:
    rl: RLConfig = field(
        default_factory=lambda: RLConfig("dr_grpo", loss_aggregation="seq_mean_token_sum_norm", entropy_coef=0.001)
    )
    """The RL term; advantages are over the group with its demonstration."""
    shaping: float = 0.1
    """gamma of f(p) = p / (p + gamma)."""


class LUFFY(GroupMethod):
    """Of a group of n, n - 1 are drawn and one is the demonstration. Its verified reward is in the group's mean, so its
    advantage dies out as the policy comes to solve the prompt."""

    Config = LUFFYConfig

    def samples_per_prompt(self, configured: int) -> int:
        return max(configured - 1, 1)

    def compose(self, step: int, groups: Sequence[Group], demonstrations: Sequence[Demonstration]) -> list[Term]:
        """One term over rollouts and demonstrations: they share its denominator."""
        joined = with_demonstrations(groups, self.demonstrated(groups))
        loss = MixedPolicyLoss(policy_loss(self.config.rl, self.longest_response), "shaped", self.config.shaping)
        return [rl_term(joined, self.config.rl, self.longest_response, loss=loss)]


def with_demonstrations(groups: Sequence[Group], found: Sequence[Sample | None]) -> list[Group]:
    """Each group with its demonstration, where there is one, as its last sample."""
    return [replace(g, samples=(*g.samples, s)) if s is not None else g for g, s in zip(groups, found, strict=True)]
