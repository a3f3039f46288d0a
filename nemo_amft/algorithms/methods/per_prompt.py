"""Methods that decide for each prompt, by its rollouts' rewards, whether it is imitated or explored: HPT, SuperRL, DyME."""

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
    advantages_of,
    policy_loss,
    rl_term,
    sft_term,
)


@dataclass(frozen=True)
class HPTConfig:
    gate: int = 0
    """A prompt with at most so many correct responses is imitated instead of explored."""
    sft_coef: float = 1.0
    """Coefficient of the demonstrations' token-mean NLL."""
    rl: RLConfig = field(
        default_factory=lambda: RLConfig("dr_grpo", loss_aggregation="seq_mean_token_sum_norm", entropy_coef=0.001)
    )
    """The RL term."""


class HPT(GroupMethod):
    """HPT (arXiv 2509.04419) counts correct responses against `gate`: a prompt at or below it loses its rollouts and gives one
    demonstration instead."""

    Config: type = HPTConfig
    imitates_a_choice = True

    def __init__(self, config: HPTConfig | SuperRLConfig, longest_response: int):
        super().__init__(config, longest_response)
        self._imitated = 0.0

    def compose(self, step: int, groups: Sequence[Group], demonstrations: Sequence[Demonstration]) -> list[Term]:
        shown = [self.tools.demonstration(group.example) if self.fails(group) else None for group in groups]
        imitated = [d for d in shown if d is not None]
        explored = [group for group, d in zip(groups, shown, strict=True) if d is None]
        self._imitated = len(imitated) / max(len(groups), 1)
        imitation = replace(sft_term(imitated), weight=self.config.sft_coef)
        return [imitation, rl_term(explored, self.config.rl, self.longest_response)]

    def fails(self, group: Group) -> bool:
        """Whether the prompt is imitated."""
        return sum(s.verdict.correct for s in group.samples) <= self.config.gate

    def metrics(self) -> dict[str, float]:
        return {"method/imitated_prompts": self._imitated}


@dataclass(frozen=True)
class SuperRLConfig:
    sft_coef: float = 1.0
    """Coefficient of the demonstrations' token-mean NLL."""
    rl: RLConfig = field(default_factory=lambda: RLConfig("grpo"))
    """The RL term."""


class SuperRL(HPT):
    """SuperRL v2 (arXiv 2506.01096): per prompt c L_PG + (1 - c) L_SFT, c = 1 if any rollout is rewarded. The same switch as
    HPT's, on rewards instead of correctness."""

    Config = SuperRLConfig

    def fails(self, group: Group) -> bool:
        return not any(reward > 0 for reward in group.rewards)


@dataclass(frozen=True)
class DyMEConfig:
    rl: RLConfig = field(default_factory=lambda: RLConfig("grpo"))
    """The RL term."""


class DyME(GroupMethod):
    """DyME (arXiv 2506.23061): a prompt that some rollouts solve is explored; where none does, the first sample becomes the
    demonstration with advantage 1 and the others count 0; where all do, there is nothing to learn."""

    Config = DyMEConfig
    imitates_a_choice = True

    def __init__(self, config: DyMEConfig, longest_response: int):
        super().__init__(config, longest_response)
        self._imitated = 0.0

    def compose(self, step: int, groups: Sequence[Group], demonstrations: Sequence[Demonstration]) -> list[Term]:
        composed, advantages, imitated = [], [], 0
        for group, demonstration in zip(groups, self.demonstrated(groups), strict=True):
            solved = sum(s.verdict.correct for s in group.samples)
            samples: tuple[Sample, ...] = group.samples
            if solved == 0 and demonstration is not None:
                samples = (demonstration, *samples[1:])
                advantages += [1.0, *[0.0] * (len(samples) - 1)]
                imitated += 1
            elif 0 < solved < len(samples):
                advantages += advantages_of(group.rewards, self.config.rl)
            else:
                advantages += [0.0] * len(samples)
            composed.append(replace(group, samples=samples))
        self._imitated = imitated / max(len(groups), 1)
        loss = MixedPolicyLoss(policy_loss(self.config.rl, self.longest_response), "log_prob")
        return [rl_term(composed, self.config.rl, self.longest_response, advantages=advantages, loss=loss)]

    def metrics(self) -> dict[str, float]:
        return {"method/imitated_prompts": self._imitated}
