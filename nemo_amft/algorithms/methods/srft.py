"""SRFT (arXiv 2506.19767): imitation and exploration in one stage, weighed by entropy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from nemo_amft.algorithms.demonstration_losses import OffPolicyLoss, SelfImitationLoss, WeightedNLL
from nemo_amft.algorithms.methods.base import (
    Demonstration,
    Group,
    GroupMethod,
    RLConfig,
    Sample,
    Term,
    advantages_of,
    rl_term,
    sft_term,
)
from nemo_amft.data.batching import Batch
from nemo_amft.types import UserError

if TYPE_CHECKING:
    from nemo_amft.config.schema import Config


@dataclass(frozen=True)
class SRFTConfig:
    sft_scale: float = 0.5
    """w_SFT = sft_scale * exp(-H), without gradient."""
    rl_scale: float = 0.1
    """w_RL = rl_scale * exp(H), without gradient, on the policy's own correct responses."""
    own_form: Literal["log_prob", "prob", "ratio"] = "log_prob"
    """What stands for log p in the parts on the policy's own responses. log_prob: the paper's, unbounded below for wrong ones.
    prob: p, bounded. ratio: p over the old policy's."""
    rl: RLConfig = field(
        default_factory=lambda: RLConfig("grpo", loss_aggregation="seq_mean_token_sum_norm", entropy_coef=0.001)
    )
    """Advantage of the demonstrations, aggregation, entropy bonus on rollouts, updates. Nothing is clipped."""


class SRFT(GroupMethod):
    """Four parts (Eqs. 5-13): w_SFT NLL(demonstration), L_RL(demonstration) with the ratio pi / 1 unclipped and its advantage
    in the group that it joins, w_RL NLL(own correct responses), and minus NLL(own wrong ones).

    H is the mean entropy of each sequence. AMFT's own description of these weights is inverted and leaves three parts out.
    """

    Config = SRFTConfig

    @staticmethod
    def validate(config: Config, plugin_config: SRFTConfig) -> None:
        """Raises UserError for a critic and for keys that its losses have no place for."""
        GroupMethod.validate(config, plugin_config)
        for key, off in (("kl_coef", 0.0), ("importance_cap", None)):
            found = getattr(plugin_config.rl, key)
            if found != off:
                expected = "null" if off is None else "0"
                raise UserError(f"method.rl.{key}: found {found}, expected {expected}: SRFT's losses have no such part")

    def compose(self, step: int, groups: Sequence[Group], demonstrations: Sequence[Demonstration]) -> list[Term]:
        rl = self.config.rl
        pairs = [(group, shown) for group, shown in zip(groups, self.demonstrated(groups), strict=True) if shown is not None]
        imitation = sft_term(
            [Demonstration(g.example, s.sequence) for g, s in pairs], WeightedNLL("entropy", self.config.sft_scale)
        )
        loss = OffPolicyLoss("ratio", aggregation=rl.loss_aggregation, constant=self.longest_response)
        off_policy = Term(
            "demonstration",
            Batch.whole(
                [s.sequence for _, s in pairs],
                advantage=[advantages_of([*g.rewards, s.verdict.reward], rl)[-1] for g, s in pairs],
            ),
            loss,
        )
        return [imitation, off_policy, self._own(groups)]

    def _own(self, groups: Sequence[Group]) -> Term:
        """Of an RL term it takes batch, needs and name; the loss is another and asks for no advantage."""
        samples: list[Sample] = [sample for group in groups for sample in group.samples]
        config, rl = self.config, self.config.rl
        loss = SelfImitationLoss(config.rl_scale, config.own_form, rl.loss_aggregation, self.longest_response, rl.entropy_coef)
        term = rl_term(groups, rl, self.longest_response, advantages=[0.0] * len(samples), loss=loss)
        term.batch.per_sequence["correct"] = [float(s.verdict.correct) for s in samples]
        if config.own_form != "ratio":
            term.needs = frozenset()
        return term
