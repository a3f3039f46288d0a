"""Builds policy and critic as a run does, makes one update that keeps a difference, and counts the bytes: what plans are
compared with, by tests/parallel/test_plan_memory.py and benchmarks/plan_memory.py."""

from __future__ import annotations

from dataclasses import dataclass, replace

from transformers import AutoConfig

from nemo_amft.algorithms.controllers.amft import MetaGradientConfig
from nemo_amft.algorithms.critic_step import add_gae, update_critic
from nemo_amft.algorithms.losses import ValueLoss
from nemo_amft.algorithms.meta_update import MetaUpdate
from nemo_amft.algorithms.methods.base import Demonstration, Group, RLConfig, Sample, Term, rl_term, sft_term
from nemo_amft.algorithms.update import update_policy
from nemo_amft.config.load import load
from nemo_amft.config.schema import Config
from nemo_amft.models.builder import build_critic, build_policy
from nemo_amft.models.critic import Critic
from nemo_amft.models.policy import Policy
from nemo_amft.observe.timers import PhaseTimers
from nemo_amft.parallel import groups, platform
from nemo_amft.planning.measure import allocated_bytes, held_addresses, held_bytes, saved_bytes
from nemo_amft.types import Example, TokenSequence, Verdict


@dataclass(frozen=True)
class Held:
    """Bytes of one rank."""

    stage: int
    """Its pipeline stage."""
    static: int
    """All tensors between two steps."""
    policy_saved: int
    """Most that autograd kept at one time, training the policy."""
    critic_saved: int
    allocated: int | None = None
    """Most that one forward and backward pass of the policy allocated, what autograd kept included."""


def configured(folder: str, prompt: int, response: int, *overrides: str) -> Config:
    """One process's configuration of a model in hub format, to be laid out by `overrides`."""
    return load(
        [
            "--config-name", "quickstart", f"model.path={folder}", "model.tensor_model_parallel_size=1", "trainer.devices=1",
            "model.micro_batch_size=2", f"data.max_prompt_tokens={prompt}", f"rollout.max_new_tokens={response}",
            f"data.max_demonstration_tokens={response}", "data.prompts_per_step=4", "data.samples_per_prompt=2",
            "data.demonstrations_per_step=4", *overrides,
        ],
        check=False,
    )  # fmt: skip


def hold(config: Config, allocations: bool = False) -> Held:
    """What this rank holds. `allocations`: also the allocator's peak, by a profiler."""
    before = held_addresses()
    model, precision = config.model, config.trainer.precision
    place = groups.initialize(model, seed=1)
    hub = AutoConfig.from_pretrained(model.path)
    with platform.megatron():
        policy = Policy(build_policy(hub, model, precision), model, config.optim, precision, place)
        critic = Critic(build_critic(hub, model, precision), model, config.critic.optim, precision, place)
    weights = held_addresses()
    sft, rl = (replace(t, batch=t.batch.share(place)) for t in _terms(config))
    add_gae(rl.batch, critic, rl)
    meta = MetaUpdate(policy, MetaGradientConfig())
    with saved_bytes(weights) as by_policy:
        result = update_policy(
            policy, [sft, rl], lambda _: {"sft": 0.5, "rl": 0.5}, PhaseTimers(), temperature=1.0, apart=meta.product
        )
    meta.keep(0, 1e-3, result)
    with saved_bytes(weights) as by_critic:
        update_critic(rl.batch, critic, ValueLoss(0.2))
    peak = None
    if allocations:
        # As many micro-batches as can be in flight: the profiler misses what gloo's threads free, which would add up.
        first = rl.batch.select(range(model.micro_batch_size * model.pipeline_model_parallel_size))
        with allocated_bytes() as peak:
            policy.accumulate_term(first, rl.loss, 1.0, temperature=1.0, last=True)
        del first
    del sft, rl, result
    return Held(place.pipeline_rank, held_bytes(before), by_policy.peak, by_critic.peak, peak and peak())


def _terms(config: Config) -> list[Term]:
    """A step's terms, all sequences of full length."""
    data, response = config.data, config.rollout.max_new_tokens
    prompt, length = data.max_prompt_tokens, data.max_prompt_tokens + response
    trained = (*[False] * prompt, *[True] * response)
    sequence = TokenSequence(tuple(i % 100 for i in range(length)), trained, tuple([-1.0] * length))
    example = Example("0", (), "")
    sample = Sample(sequence, "", Verdict(1.0, True), True, response)
    made = [Group(example, (sample,) * data.samples_per_prompt)] * data.prompts_per_step
    return [sft_term([Demonstration(example, sequence)] * data.demonstrations_per_step), rl_term(made, RLConfig(), response)]
