"""Phase 1 of Algorithm 2 (lines 5-12): SFT alone, the target entropy, and the state that the main loop starts from."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch

from nemo_amft.algorithms.methods.base import sft_term
from nemo_amft.algorithms.sampling import rollout_metrics
from nemo_amft.algorithms.trainer import Trainer
from nemo_amft.algorithms.update import update_policy
from nemo_amft.algorithms.warmup_selection import WarmUpSelection
from nemo_amft.data.batching import Batch
from nemo_amft.models.trainable import ForwardModel, set_schedule
from nemo_amft.parallel.reductions import mean_and_std


def warm_up(trainer: Trainer) -> Iterator[int]:
    """W steps of SFT. Yields after each, for the caller to checkpoint."""
    p, c = trainer.parts, trainer.config.warmup
    schedule = p.policy.scheduler(c.lr, 0.0, max(c.steps, 1), c.lr_warmup_ratio, c.lr_decay_style)
    selection = WarmUpSelection(trainer)
    p.progress.start("warm-up", c.steps, trainer.progress.warmup_step)
    while trainer.progress.warmup_step < c.steps:
        w = trainer.progress.warmup_step
        learning_rate = set_schedule(schedule, w)
        term = sft_term(trainer.demonstrations(c.demonstrations_per_step)).by_source(p.data.demonstration_sources)
        result = update_policy(p.policy, [trainer.share(term)], lambda _: {}, p.timers, temperature=1.0)
        metrics = result.metrics | {"grad_norm/total": result.grad_norm, "learning_rate": learning_rate}
        metrics["entropy"] = metrics["entropy/sft"]
        trainer.count_skipped(result.grad_norm, metrics)
        metrics |= trainer.throughput([], [term], []) | selection.look(w + 1)
        trainer.log("warmup", w, metrics)
        trainer.progress.warmup_step += 1
        yield w


def after_warm_up(trainer: Trainer) -> None:
    """H*, and the critic's start from the warmed-up policy."""
    p, c = trainer.parts, trainer.config
    WarmUpSelection(trainer).hand_over()
    trainer.sync()
    trainer.progress.target_entropy = target_entropy(trainer)
    p.policy.gather_parameters()
    if p.critic is not None and c.critic.path is None:
        p.critic.copy_body_from(p.policy)
    if p.reference is not None:
        _copy_weights(p.policy, p.reference)


def target_entropy(trainer: Trainer) -> float:
    """H*: the same estimator as the controller's H_t, over several batches; over rollouts where there is no demonstration, as
    the run then has no SFT term. Raises RuntimeError if it is not finite."""
    p, c = trainer.parts, trainer.config
    n = c.warmup.target_entropy_batches
    if p.controller.first_term == "sft" and p.data.demonstrations:
        examples = p.data.some_demonstrations(n * c.data.demonstrations_per_step)
        batch, temperature = Batch.whole([p.sampler.chat.demonstration(e) for e in examples]), 1.0
    else:
        with trainer.awake():
            groups = trainer.roll_out("target_entropy", 0, p.data.some_prompts(n * c.data.prompts_per_step), 1)
        p.sampler.failures()  # a reward that could not be graded has no part in an entropy
        batch, temperature = Batch.whole([s.sequence for g in groups for s in g.samples]), c.rollout.temperature
    share = batch.share(p.place)
    values = p.policy.entropies(share, temperature=temperature)
    mean, _ = mean_and_std([v[torch.tensor(s.trained)] for v, s in zip(values, share.sequences, strict=True)])
    if not math.isfinite(mean):
        raise RuntimeError(f"the policy's entropy after warm-up is {mean}: warm-up has diverged (warmup.lr is {c.warmup.lr:g})")
    return mean


def warm_up_critic(trainer: Trainer) -> Iterator[int]:
    """The critic alone learns from rollouts of theta_0: the first advantages should mean something (Open-Reasoner-Zero). Yields
    after each step, for the caller to checkpoint."""
    p, c = trainer.parts, trainer.config
    if p.critic is None or trainer.progress.critic_step >= c.critic.warmup_steps:
        return
    p.progress.start("critic warm-up", c.critic.warmup_steps, trainer.progress.critic_step)
    set_schedule(p.critic.scheduler(c.critic.optim.lr, 0.0, c.critic.warmup_steps, 0.0, "constant"), 0)
    for i in range(trainer.progress.critic_step, c.critic.warmup_steps):
        with trainer.awake():
            prompts = p.streams["prompts"].take(c.data.prompts_per_step)
            groups = trainer.roll_out("critic", i, prompts, c.data.samples_per_prompt)
        terms = [term for term in p.method.compose(0, groups, []) if "value" in term.needs]
        metrics = rollout_metrics(groups, p.data.prompt_sources) | p.sampler.failures()
        shares = [trainer.share(term) for term in terms]
        metrics |= trainer.prepare([shares]) | trainer.update_critic([shares])
        trainer.count_skipped(0.0, metrics)
        trainer.count_tokens(groups, terms)
        metrics["data/samples"] = float(sum(len(group.samples) for group in groups))
        trainer.log("warmup", c.warmup.steps + i, metrics, i)
        trainer.progress.critic_step += 1
        yield i


@torch.no_grad()
def _copy_weights(source: ForwardModel, target: ForwardModel) -> None:
    for a, b in zip(source.chunks, target.chunks, strict=True):
        named = {name.removeprefix("module."): parameter for name, parameter in a.named_parameters()}
        for name, parameter in b.named_parameters():
            parameter.copy_(named[name.removeprefix("module.")])
