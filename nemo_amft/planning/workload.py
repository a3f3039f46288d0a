"""The passes of one step over policy and critic, at mean lengths: what FLOPs, traffic and times are counted from."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from nemo_amft.config.architecture import Architecture
from nemo_amft.config.rules import data_parallel_size, lookup
from nemo_amft.config.schema import Config
from nemo_amft.planning.flops import forward_flops, generation_flops
from nemo_amft.planning.memory import uses_critic

MEAN_FILL = 0.5
"""Mean length of prompts, responses and demonstrations as a share of their limits, where `fill=` gives none. A guess: no run at
full size has been made. Memory is planned at the limits."""


@dataclass(frozen=True)
class Pass:
    """One pass over a batch, all ranks together."""

    phase: str
    """As the trainer times it: sft, rl, value, logprob, critic, meta."""
    sequences: float
    """A fraction where the pass is not made at every step."""
    positions: int
    """Of one sequence."""
    trained: int
    """Of these, positions that meet the output layer."""
    backward: bool
    critic: bool = False

    def flops(self, architecture: Architecture) -> float:
        """Model FLOPs."""
        one = forward_flops(architecture, [self.positions], self.trained, output=not self.critic)
        return self.sequences * one * (3 if self.backward else 1)

    @property
    def total_positions(self) -> float:
        return self.sequences * self.positions


@dataclass(frozen=True)
class Workload:
    """What a step computes on average; validation, warm-up and checkpoints are not in it."""

    prompt: int
    """Mean tokens of a prompt."""
    response: int
    """Mean tokens of a response."""
    rollouts: float
    """Responses generated, those of meta-updates included."""
    prompts: float
    """Distinct prompts of them."""
    passes: tuple[Pass, ...]
    updates: int

    def generation_flops(self, architecture: Architecture) -> float:
        return self.rollouts * generation_flops(architecture, [self.prompt], [self.response])

    def training_flops(self, architecture: Architecture) -> float:
        """Of all passes, forward ones included."""
        return sum(one.flops(architecture) for one in self.passes)


def workload(config: Config, fill: float = MEAN_FILL) -> Workload:
    """The average step of `config`."""
    data = config.data
    prompt, response, demonstration = (
        max(1, round(fill * n)) for n in (data.max_prompt_tokens, config.rollout.longest, data.max_demonstration_tokens)
    )
    rollouts = data.prompts_per_step * data.samples_per_prompt
    updates = lookup(config, "method.rl.updates_per_rollout_batch") or 1
    rl = (rollouts, prompt + response - 1, response)
    passes = []
    if uses_critic(config):
        passes.append(Pass("value", *rl, backward=False, critic=True))
    passes += [Pass("logprob", *rl, backward=False)] * ((updates > 1) + bool(lookup(config, "method.rl.kl_coef")))
    passes.append(Pass("sft", data.demonstrations_per_step, prompt + demonstration - 1, demonstration, backward=True))
    passes.append(Pass("rl", *rl, backward=True))
    if uses_critic(config):
        passes.append(Pass("critic", *rl, backward=True, critic=True))
    meta_prompts, meta_samples = _meta(config)
    if meta_prompts:
        passes.append(Pass("meta", meta_prompts * meta_samples, *rl[1:], backward=True))
    return Workload(
        prompt, response, rollouts + meta_prompts * meta_samples, data.prompts_per_step + meta_prompts, tuple(passes), updates
    )


def micro_batches(config: Config, one: Pass) -> int:
    """Micro-batches of a data-parallel rank's share of a pass, lengths alike."""
    share = max(1, ceil(one.sequences / data_parallel_size(config)))
    if config.model.micro_batch_tokens is None:
        return ceil(share / config.model.micro_batch_size)
    return ceil(share / max(1, config.model.micro_batch_tokens // one.positions))


def _meta(config: Config) -> tuple[float, int]:
    """(validation prompts a step on average, samples a prompt) of meta-updates."""
    every = lookup(config, "controller.meta_every")
    prompts, samples = (lookup(config, f"controller.meta_gradient.val_{name}") for name in ("prompts", "samples"))
    if not lookup(config, "controller.eta_mu") or None in (every, prompts, samples):
        return 0.0, 0
    return prompts / every, samples
