"""What a method is: how a step's batch is composed and which loss terms it has.

The trainer asks a method what to roll out, gives it the graded responses and the step's demonstrations, and gets loss terms
back. The controller weighs the terms by name. Nothing else differs between methods.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol

import torch

from nemo_amft.algorithms.advantages import group_advantages
from nemo_amft.algorithms.losses import BySource, PolicyLoss, SFTLoss
from nemo_amft.data.batching import Batch
from nemo_amft.data.chat import responses
from nemo_amft.types import Example, TokenLoss, TokenSequence, UserError, Verdict

if TYPE_CHECKING:
    from nemo_amft.config.schema import Config, DataConfig


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
    """Normalise GAE advantages over the global batch of each update."""
    whiten_floor: float = 0.01
    """Standard deviation of advantages (gae) or of a group's rewards (grpo) below which they are centred and not divided by it:
    such differences are noise. A single success among 10,000 rollouts has 0.01."""
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
    """One graded response, or all of an episode's. `sequence` is prompt and response, trained on what the policy wrote."""

    sequence: TokenSequence
    text: str
    verdict: Verdict
    finished: bool
    num_tokens: int
    """Tokens of the response."""
    off_policy: bool = False
    """A demonstration that stands among rollouts."""
    num_turns: int = 1
    """Responses of the episode."""


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
    finished: bool = True
    """False where it was cut by data.max_demonstration_tokens: it has lost its end, and with it its answer."""


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
    weight: float = 1.0
    """The method's own factor, on top of the controller's."""
    own_update: bool = False
    """An optimiser update of its own, after the step's others, instead of a part of theirs."""
    needs: frozenset[str] = frozenset()
    rl: RLConfig | None = field(default=None, repr=False)
    sources: Sequence[str] = ()
    """Where the sequences come from, if they are demonstrations."""

    def by_source(self, known: Sequence[str]) -> Term:
        """The term, with the loss of each of the `known` sources among its metrics where it has demonstrations."""
        if not self.sources or not known:
            return self
        place = {source: float(i) for i, source in enumerate(known)}
        numbers = self.batch.per_sequence | {"source": [place[source] for source in self.sources]}
        return replace(self, batch=replace(self.batch, per_sequence=numbers), loss=BySource(self.loss, tuple(known)))

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
        return [replace(self, batch=b) for b in batches]


class Tools(Protocol):
    """What a method may ask of the run. Every rank asks alike, in the same order."""

    run_seed: int
    """trainer.seed, for draws of a method's own. A generator made of it and the step gives every rank the same, after a resume
    too."""

    def demonstration(self, example: Example) -> Demonstration | None:
        """The example's demonstration as tokens; None if it has none."""
        ...

    def encode(self, text: str) -> list[int]:
        """Token ids of text in the middle of a sequence."""
        ...

    def fits(self, example: Example) -> bool:
        """Whether the example's prompt, with its response_prefix, leaves the longest response room."""
        ...

    def grade(self, examples: Sequence[Example], responses: Sequence[Sequence[str]], finished: Sequence[bool]) -> list[Verdict]:
        """Verdicts of the responses to each example, one or a conversation's, in order. Collective."""
        ...


class Method:
    """Base of methods, one per file. `Config` is a frozen dataclass with a documented default for every key."""

    Config: type
    uses_critic = False
    """Whether a critic is built: for terms that need "value"."""
    uses_reference = False
    """Whether a frozen copy of the policy after warm-up is kept: for terms that need "reference_log_prob"."""
    updates_per_step = 1
    """Optimiser updates that the step's terms are split into."""
    needs_demonstrations = False
    """Whether prompts are drawn from the examples that have a demonstration only."""
    imitates_a_choice = False
    """Whether what is imitated depends on the rollouts, or is a part of a demonstration. Its entropy is then that of a choice
    and no measure of the policy, so none is logged as `entropy`."""
    rolls_out = True
    """Whether there are rollouts at all."""
    has_both_terms = True
    """Whether L_SFT and L_RL stand in every step, weighed by the controller alone: only then has mu a meta-gradient, and a
    learned mu anything to balance."""

    def __init__(self, config: Any, longest_response: int):
        """`longest_response`: in tokens; the constant divisor of seq_mean_token_sum_norm."""
        self.config, self.longest_response = config, longest_response

    tools: Tools

    def use_rl(self, rl: RLConfig) -> None:
        """Ask for what an RL term of this configuration needs."""
        self.uses_critic = rl.advantage == "gae"
        self.uses_reference = rl.kl_coef > 0.0
        self.updates_per_step = rl.updates_per_rollout_batch

    def bind(self, tools: Tools) -> None:
        """Called once, before the first step."""
        self.tools = tools

    def prompts(self, step: int, examples: Sequence[Example]) -> list[Example]:
        """What to roll out: a method with hints or thought patterns changes the prompts here, one without rollouts returns
        none."""
        return list(examples)

    def samples_per_prompt(self, configured: int) -> int:
        """Rollouts a prompt, of data.samples_per_prompt; fewer where something else fills the group."""
        return configured

    def demonstrations_per_step(self, configured: int) -> int:
        """Demonstrations that `compose` is given, of data.demonstrations_per_step; 0 where none of them is used."""
        return configured

    def most_imitated(self, data: DataConfig) -> int:
        """Most demonstrations that a step trains on."""
        return self.demonstrations_per_step(data.demonstrations_per_step)

    def imitates(self, data: DataConfig) -> bool:
        """Whether the method has a use for demonstrations; without one, the data needs none."""
        return self.needs_demonstrations or self.most_imitated(data) > 0

    def added_prompt_tokens(self, data: DataConfig) -> int:
        """Most tokens that `prompts` adds to a prompt; the engine makes room for as many of them as the model has positions."""
        return 0

    def compose(self, step: int, groups: Sequence[Group], demonstrations: Sequence[Demonstration]) -> list[Term]:
        """The step's loss terms, at least one; a term whose batch is empty adds nothing."""
        raise NotImplementedError

    def demonstrated(self, groups: Sequence[Group]) -> list[Sample | None]:
        """The demonstration of each group's prompt as a graded sample; None where there is none. Collective."""
        found = [self.tools.demonstration(group.example) for group in groups]
        there = [d for d in found if d is not None]
        shown = [responses(d.example) for d in there]
        verdicts = iter(self.tools.grade([d.example for d in there], shown, [d.finished for d in there]))

        def sample(shown: Demonstration) -> Sample:
            turns, length = responses(shown.example), shown.sequence.num_trained
            return Sample(
                shown.sequence, "\n".join(turns), next(verdicts), shown.finished, length, off_policy=True, num_turns=len(turns)
            )

        return [None if d is None else sample(d) for d in found]

    def observe(self, phase: str, step: int, metrics: Mapping[str, float]) -> None:
        """What a step of `phase` ("warmup" or "train") measured, the same on every rank; called after it."""

    def metrics(self) -> dict[str, float]:
        """What the last `prompts` and `compose` did, for the log."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """JSON-ready state (buffers, schedules)."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""


class GroupMethod(Method):
    """Base of methods whose RL term `config.rl` compares the responses to one prompt, so that no critic has a part in them.
    What they imitate belongs to the step's prompts."""

    needs_demonstrations = True
    has_both_terms = False

    def __init__(self, config: Any, longest_response: int):
        super().__init__(config, longest_response)
        self.use_rl(config.rl)

    @staticmethod
    def validate(config: Config, plugin_config: Any) -> None:
        """Raises UserError for a critic."""
        if plugin_config.rl.advantage == "gae":
            raise UserError("method.rl.advantage: found gae, expected grpo, dr_grpo or rloo: this method compares a group")

    def demonstrations_per_step(self, configured: int) -> int:
        return 0

    def most_imitated(self, data: DataConfig) -> int:
        return max(data.prompts_per_step, self.demonstrations_per_step(data.demonstrations_per_step))


def text_of(example: Example) -> str:
    """The demonstration of a task with one turn; "" for none. Raises UserError for one of several turns."""
    if isinstance(example.demonstration, tuple):
        raise UserError(f"{example.id}: demonstration: found several turns, expected one: this method takes it apart")
    return example.demonstration or ""


def sft_term(demonstrations: Sequence[Demonstration], loss: TokenLoss | None = None) -> Term:
    """Token-mean NLL of the demonstrations (paper, Eq. 2), or another `loss` over them."""
    batch = Batch.whole([d.sequence for d in demonstrations])
    return Term("sft", batch, loss or SFTLoss(), sources=[d.example.source for d in demonstrations])


def advantages_of(rewards: Sequence[float], rl: RLConfig) -> list[float]:
    """Group advantages as `rl` describes them."""
    return group_advantages(rewards, rl.advantage, rl.whiten_floor)


def policy_loss(rl: RLConfig, longest_response: int) -> PolicyLoss:
    """The loss that `rl` describes."""
    return PolicyLoss(rl.clip_ratio, rl.loss_aggregation, longest_response, rl.kl_coef, rl.entropy_coef, rl.importance_cap)


def rl_term(
    groups: Sequence[Group],
    rl: RLConfig,
    longest_response: int,
    *,
    advantages: Sequence[float] | None = None,
    loss: TokenLoss | None = None,
) -> Term:
    """PPO's clipped loss over all responses; group advantages are set here, GAE's by the trainer, which has the critic.

    `advantages`: others than the group's, one a sample in order. `loss`: another than PolicyLoss, over the same extras and
    `off_policy` [B, 1].
    """
    samples = [sample for group in groups for sample in group.samples]
    batch = Batch.whole([s.sequence for s in samples], reward=[s.verdict.reward for s in samples])
    behavior = [torch.tensor(s.sequence.behavior_log_probs or [0.0] * len(s.sequence.tokens)) for s in samples]
    batch.per_token["behavior_log_prob"] = behavior
    batch.per_sequence["off_policy"] = [float(s.off_policy) for s in samples]
    needs = set()
    if advantages is not None:
        batch.per_sequence["advantage"] = list(advantages)
    elif rl.advantage == "gae":
        needs.add("value")
    else:
        batch.per_sequence["advantage"] = [a for group in groups for a in advantages_of(group.rewards, rl)]
    if rl.updates_per_rollout_batch > 1:
        needs.add("old_log_prob")
    if rl.kl_coef:
        needs.add("reference_log_prob")
    loss = loss or policy_loss(rl, longest_response)
    return Term("rl", batch, loss, on_policy=True, needs=frozenset(needs), rl=rl)
