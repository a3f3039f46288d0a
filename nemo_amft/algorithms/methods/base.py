"""What a method is: how a step's batch is composed and which loss terms it has.

The trainer asks a method what to roll out, gives it the graded responses and the step's demonstrations, and gets loss terms
back. The controller weighs the terms by name. Nothing else differs between methods.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from nemo_amft.algorithms.advantages import group_advantages
from nemo_amft.algorithms.losses import PolicyLoss, SFTLoss
from nemo_amft.data.batching import Batch
from nemo_amft.types import Example, TokenLoss, TokenSequence, Verdict


@dataclass(frozen=True)
class RLConfig:
    """The RL term, shared by every method that has one."""

    advantage: Literal["gae", "grpo", "dr_grpo", "rloo"] = "gae"
    """gae: PPO with a critic. grpo: (r - mean) / std over the group. dr_grpo: r - mean. rloo: r - mean of the others."""
    gamma: float = 1.0
    """Discount (paper, Table 6: 1)."""
    lam: float = 1.0
    """GAE's lambda."""
    whiten_advantages: bool = True
    """Normalise GAE advantages over the global batch."""
    clip_ratio: float = 0.2
    """PPO's clip range."""
    loss_aggregation: Literal["token_mean", "seq_mean_token_sum_norm", "seq_mean_token_mean"] = "token_mean"
    """token_mean: over all tokens of the global batch. seq_mean_token_sum_norm: token sums over a constant (Dr.GRPO)."""
    updates_per_rollout_batch: int = 1
    """Optimiser updates made from one rollout batch."""
    kl_coef: float = 0.0
    """Coefficient of KL(policy || the frozen policy at the end of warm-up); 0 builds no reference model."""
    entropy_coef: float = 0.0
    """Coefficient of the entropy bonus."""
    importance_cap: float | None = None
    """Cap of the truncated importance weights policy / rollout engine; None: no weights."""


@dataclass(frozen=True)
class Sample:
    """One graded response. `sequence` is prompt and response, trained on the response."""

    sequence: TokenSequence
    text: str
    verdict: Verdict
    finished: bool
    num_tokens: int
    """Tokens of the response."""


@dataclass(frozen=True)
class Group:
    """The responses to one prompt."""

    example: Example
    samples: tuple[Sample, ...]

    @property
    def rewards(self) -> list[float]:
        return [sample.verdict.reward for sample in self.samples]


@dataclass(frozen=True)
class Demonstration:
    """An expert's response as tokens, trained on the response."""

    example: Example
    sequence: TokenSequence


@dataclass
class Term:
    """One loss term over a global batch. The controller weighs it by `name`.

    `needs` names what the trainer must add to the batch first: "value" (critic's values and GAE), "old_log_prob" (several
    updates from one rollout batch), "reference_log_prob" (KL to the starting policy).
    """

    name: str
    batch: Batch
    loss: TokenLoss
    on_policy: bool = False
    """Log-probs at the rollouts' temperature instead of 1."""
    needs: frozenset[str] = frozenset()
    rl: RLConfig | None = field(default=None, repr=False)

    def split(self, parts: int) -> list[Term]:
        """For several updates from one rollout batch: neighbouring sequences, each part with global counts of its own."""
        if parts == 1:
            return [self]
        n = len(self.batch.sequences)
        chosen = [self.batch.select(range(n * i // parts, n * (i + 1) // parts)) for i in range(parts)]
        whole = [Batch.whole(c.sequences) for c in chosen]
        batches = [
            Batch(c.sequences, w.total_tokens, w.total_sequences, c.per_token, c.per_sequence)
            for c, w in zip(chosen, whole, strict=True)
        ]
        return [Term(self.name, b, self.loss, self.on_policy, self.needs, self.rl) for b in batches]


class Method:
    """Base of methods, one per file. `Config` is a frozen dataclass with a documented default for every key."""

    Config: type
    uses_critic = False
    """Whether a critic is built: for terms that need "value"."""
    uses_reference = False
    """Whether a frozen copy of the policy after warm-up is kept: for terms that need "reference_log_prob"."""
    updates_per_step = 1
    """Optimiser updates that the step's terms are split into."""

    def __init__(self, config: Any, max_new_tokens: int):
        """`max_new_tokens`: the longest response, the constant divisor of seq_mean_token_sum_norm."""
        self.config, self.max_new_tokens = config, max_new_tokens

    def prompts(self, step: int, examples: Sequence[Example]) -> list[Example]:
        """What to roll out; a method with hints or thought patterns changes the prompts here."""
        return list(examples)

    def compose(self, step: int, groups: Sequence[Group], demonstrations: Sequence[Demonstration]) -> list[Term]:
        """The step's loss terms."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """JSON-ready state (buffers, schedules)."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""


def sft_term(demonstrations: Sequence[Demonstration]) -> Term:
    """Token-mean NLL of the demonstrations (paper, Eq. 2)."""
    return Term("sft", Batch.whole([d.sequence for d in demonstrations]), SFTLoss())


def rl_term(groups: Sequence[Group], rl: RLConfig, max_new_tokens: int) -> Term:
    """PPO's clipped loss over all responses; group advantages are set here, GAE's by the trainer, which has the critic."""
    samples = [sample for group in groups for sample in group.samples]
    batch = Batch.whole([s.sequence for s in samples], reward=[s.verdict.reward for s in samples])
    behavior = [torch.tensor(s.sequence.behavior_log_probs or [0.0] * len(s.sequence.tokens)) for s in samples]
    batch.per_token["behavior_log_prob"] = behavior
    loss = PolicyLoss(rl.clip_ratio, rl.loss_aggregation, max_new_tokens, rl.kl_coef, rl.entropy_coef, rl.importance_cap)
    needs = set()
    if rl.advantage == "gae":
        needs.add("value")
    else:
        batch.per_sequence["advantage"] = [a for group in groups for a in group_advantages(group.rewards, rl.advantage)]
    if rl.updates_per_rollout_batch > 1:
        needs.add("old_log_prob")
    if rl.kl_coef:
        needs.add("reference_log_prob")
    return Term("rl", batch, loss, on_policy=True, needs=frozenset(needs), rl=rl)
