"""The batch of a step, in every unit that people call "batch size"."""

from __future__ import annotations

from math import ceil

from nemo_amft.config.rules import data_parallel_size, lookup
from nemo_amft.config.schema import Config, ModelConfig
from nemo_amft.planning.tables import Row


def batch_table(config: Config) -> list[Row]:
    """The batch of a step, spelled out in every unit that people call "batch size"."""
    data, trainer, model, warmup = config.data, config.trainer, config.model, config.warmup
    ranks = data_parallel_size(config)
    method = config.method.build(config.rollout.longest)
    samples = method.samples_per_prompt(data.samples_per_prompt) if method.rolls_out else 0
    imitated, most = method.demonstrations_per_step(data.demonstrations_per_step), method.most_imitated(data)
    sequences = data.prompts_per_step * samples
    updates = lookup(config, "method.rl.updates_per_rollout_batch") or 1
    share = ceil(sequences / ranks / updates)
    tokens = sequences * (data.max_prompt_tokens + config.rollout.longest)
    tokens += most * (data.max_prompt_tokens + data.max_demonstration_tokens)
    longest = data.max_prompt_tokens + max(config.rollout.longest, data.max_demonstration_tokens) - 1
    layout = (model.tensor_model_parallel_size, model.pipeline_model_parallel_size, model.context_parallel_size)
    rows = [
        (
            "nodes x processes",
            f"{trainer.num_nodes} x {trainer.devices} = {trainer.num_nodes * trainer.devices}: "
            f"tensor {layout[0]} x pipeline {layout[1]} x context {layout[2]} x data {ranks}",
        ),
        *(_rollouts(data.prompts_per_step, samples, updates, share, _micro_batches(model, share, longest)) if samples else ()),
        (
            "demonstrations a step",
            _demonstrations(imitated, ranks, model, longest) if imitated else f"at most {most}, of prompts" if most else "none",
        ),
        ("tokens a step, at most", f"{tokens:,}"),
        ("steps", f"{trainer.max_steps}, after {warmup.steps} of warm-up"),
        ("demonstrations a warm-up step", _demonstrations(warmup.demonstrations_per_step, ranks, model, longest)),
        ("validation", _validation(config)),
    ]
    meta = _meta_update(config, sequences)
    return rows + ([("meta-update", meta)] if meta else [])


def _rollouts(prompts: int, samples: int, updates: int, share: int, micro_batches: str) -> list[Row]:
    sequences = prompts * samples
    return [
        ("rollouts a step", f"{prompts} prompts x {samples} samples = {sequences} sequences"),
        ("updates a step", f"{updates}, of {sequences // updates} sequences"),
        ("a data-parallel rank, an update", f"{share} sequences, {micro_batches}"),
    ]


def _micro_batches(model: ModelConfig, share: int, longest: int) -> str:
    """How a rank's share is cut. By tokens the number follows from the lengths, so the most there can be."""
    if model.micro_batch_tokens is None:
        return f"micro-batches of {model.micro_batch_size}: {ceil(share / model.micro_batch_size)}"
    most = ceil(share / max(1, model.micro_batch_tokens // longest))
    return f"micro-batches of {model.micro_batch_tokens:,} tokens: {most} at full length"


def _demonstrations(count: int, ranks: int, model: ModelConfig, longest: int) -> str:
    share = ceil(count / ranks)
    return f"{count}; a data-parallel rank: {share}, {_micro_batches(model, share, longest)}"


def _validation(config: Config) -> str:
    validation = config.validation
    when = f"every {validation.every} steps" if validation.every else "at the end only"
    rollouts = f"{validation.prompts} prompts x {validation.samples} = {validation.prompts * validation.samples} rollouts"
    return f"{rollouts}, {when}; {validation.final_prompts} prompts at the end"


def _meta_update(config: Config, sequences: int) -> str | None:
    every = lookup(config, "controller.meta_every")
    prompts, samples = (lookup(config, f"controller.meta_gradient.val_{name}") for name in ("prompts", "samples"))
    if not sequences or not lookup(config, "controller.eta_mu") or None in (every, prompts, samples):
        return None
    rollouts = prompts * samples
    return (
        f"{prompts} prompts x {samples} = {rollouts} rollouts and a backward pass over them every {every} steps: "
        f"{rollouts / every / sequences:.1%} more rollouts"
    )
