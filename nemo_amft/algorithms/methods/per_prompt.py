"""Methods that decide for each prompt, by its rollouts' rewards, whether it is imitated or explored: HPT, SuperRL, DyME."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from nemo_amft.algorithms.advantages import group_advantages
from nemo_amft.algorithms.demonstration_losses import MixedPolicyLoss
from nemo_amft.algorithms.methods.base import (
    Demonstration,
    Group,
    Method,
    RLConfig,
    Sample,
    Term,
    policy_loss,
    rl_term,
    sft_term,
)


@dataclass(frozen=True)
class GateConfig:
    gate: int = 0
    """A prompt with at most so many correct responses is imitated instead of explored."""
    sft_coef: float = 1.0
    """Coefficient of the demonstrations' token-mean NLL."""
    rl: RLConfig = field(default_factory=lambda: RLConfig("grpo"))
    """The RL term."""


class Gated(Method):
    """HPT (arXiv 2509.04419) counts correct responses against `gate`: a prompt at or below it loses its rollouts and gives one
    demonstration instead. SuperRL's second version is the same switch at the first rewarded response."""

    Config = GateConfig
    needs_demonstrations = True

    def __init__(self, config: GateConfig, max_new_tokens: int):
        super().__init__(config, max_new_tokens)
        self.use_rl(config.rl)
        self._imitated = 0.0

    def compose(self, step: int, groups: Sequence[Group], demonstrations: Sequence[Demonstration]) -> list[Term]:
        failed = [g for g in groups if self.fails(g)]
        shown = [d for d in (self.tools.demonstration(g.example) for g in failed) if d is not None]
        imitated = {d.example.id for d in shown}
        explored = [g for g in groups if g.example.id not in imitated]
        self._imitated = len(shown) / max(len(groups), 1)
        imitation = replace(sft_term(shown), weight=self.config.sft_coef)
        return [imitation, rl_term(explored, self.config.rl, self.max_new_tokens)]

    def fails(self, group: Group) -> bool:
        """Whether the prompt is imitated."""
        return sum(s.verdict.correct for s in group.samples) <= self.config.gate

    def metrics(self) -> dict[str, float]:
        return {"method/imitated_prompts": self._imitated}


class SuperRL(Gated):
    """SuperRL v2 (arXiv 2506.01096, from summaries only): per prompt c L_PG + (1 - c) L_SFT, c = 1 if any rollout is
    rewarded."""

    def fails(self, group: Group) -> bool:
        return not any(reward > 0 for reward in group.rewards)


@dataclass(frozen=True)
class DyMEConfig:
    rl: RLConfig = field(default_factory=lambda: RLConfig("grpo"))
    """The RL term."""


class DyME(Method):
    """DyME (arXiv 2506.23061): a prompt that some rollouts solve is explored; where none does, the first sample becomes the
    demonstration with advantage 1 and the others count 0; where all do, there is nothing to learn."""

    Config = DyMEConfig
    needs_demonstrations = True

    def __init__(self, config: DyMEConfig, max_new_tokens: int):
        super().__init__(config, max_new_tokens)
        self.use_rl(config.rl)
        self._imitated = 0.0

    def compose(self, step: int, groups: Sequence[Group], demonstrations: Sequence[Demonstration]) -> list[Term]:
        shown = self.demonstrated(groups)
        composed, advantages, imitated = [], [], 0
        for group, demonstration in zip(groups, shown, strict=True):
            solved = sum(s.verdict.correct for s in group.samples)
            samples: tuple[Sample, ...] = group.samples
            if solved == 0 and demonstration is not None:
                samples = (demonstration, *samples[1:])
                advantages += [1.0, *[0.0] * (len(samples) - 1)]
                imitated += 1
            elif 0 < solved < len(samples):
                advantages += group_advantages(group.rewards, self.config.rl.advantage)
            else:
                advantages += [0.0] * len(samples)
            composed.append(replace(group, samples=samples))
        self._imitated = imitated / max(len(groups), 1)
        loss = MixedPolicyLoss(policy_loss(self.config.rl, self.max_new_tokens), "log_prob")
        return [rl_term(composed, self.config.rl, self.max_new_tokens, advantages=advantages, loss=loss)]

    def metrics(self) -> dict[str, float]:
        return {"method/imitated_prompts": self._imitated}
