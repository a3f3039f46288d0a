"""SRFT (arXiv 2506.19767): imitation and exploration in one stage, weighed by entropy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from nemo_amft.algorithms.advantages import group_advantages
from nemo_amft.algorithms.demonstration_losses import OffPolicyLoss, SelfImitationLoss, WeightedNLL
from nemo_amft.algorithms.methods.base import (
    Demonstration,
    Group,
    Method,
    RLConfig,
    Sample,
    Term,
    rl_term,
    sft_term,
)
from nemo_amft.data.batching import Batch


@dataclass(frozen=True)
class SRFTConfig:
    sft_scale: float = 0.5
    """w_SFT = sft_scale * exp(-H), without gradient."""
    rl_scale: float = 0.1
    """w_RL = rl_scale * exp(H), without gradient, on the policy's own correct responses."""
    negative_floor: float | None = None
    """Log-prob below which tokens of wrong responses are left alone: their term is unbounded below. None: as the source."""
    rl: RLConfig = field(default_factory=lambda: RLConfig("grpo"))
    """Advantage and aggregation of the demonstrations' RL term."""


class SRFT(Method):
    """Four parts (Eqs. 5-13): w_SFT NLL(demonstration), L_RL(demonstration) with the ratio pi / 1 unclipped and its advantage
    in the group that it joins, w_RL NLL(own correct responses), and minus NLL(own wrong ones).

    H is the mean entropy of each sequence. AMFT's own description of these weights is inverted and leaves three parts out.
    """

    Config = SRFTConfig
    needs_demonstrations = True

    def compose(self, step: int, groups: Sequence[Group], demonstrations: Sequence[Demonstration]) -> list[Term]:
        pairs = [(group, shown) for group, shown in zip(groups, self.demonstrated(groups), strict=True) if shown is not None]
        shown = [Group(group.example, (sample,)) for group, sample in pairs]
        advantages = [group_advantages([*g.rewards, s.verdict.reward], self.config.rl.advantage)[-1] for g, s in pairs]
        imitation = sft_term(
            [Demonstration(g.example, s.sequence) for g, s in pairs], WeightedNLL("entropy", self.config.sft_scale)
        )
        rl = self.config.rl
        loss = OffPolicyLoss("ratio", aggregation=rl.loss_aggregation, constant=self.max_new_tokens)
        off_policy = rl_term(shown, rl, self.max_new_tokens, advantages=advantages, loss=loss)
        off_policy.name, off_policy.on_policy = "demonstration", False
        return [imitation, off_policy, self._own([sample for group in groups for sample in group.samples])]

    def _own(self, samples: Sequence[Sample]) -> Term:
        batch = Batch.whole([s.sequence for s in samples], correct=[float(s.verdict.correct) for s in samples])
        return Term("rl", batch, SelfImitationLoss(self.config.rl_scale, self.config.negative_floor), on_policy=True)
