"""What a configuration will do, worked out without building anything: batches, parameters, static memory of a rank.

Memory leaves out activations, the rollout engine and fragmentation: it is what every step holds, however long the text.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import ceil

from nemo_amft.config.architecture import Architecture, architecture_of
from nemo_amft.config.rules import data_parallel_size, lookup
from nemo_amft.config.schema import Config, OptimConfig

Row = tuple[str, str]
GIB = 1024**3


def batch_table(config: Config) -> list[Row]:
    """The batch of a step, spelled out in every unit that people call "batch size"."""
    data, trainer, model, warmup = config.data, config.trainer, config.model, config.warmup
    ranks = data_parallel_size(config)
    sequences = data.prompts_per_step * data.samples_per_prompt
    updates = lookup(config, "method.rl.updates_per_rollout_batch") or 1
    share = ceil(sequences / ranks / updates)
    tokens = sequences * (data.max_prompt_tokens + config.rollout.max_new_tokens)
    tokens += data.demonstrations_per_step * (data.max_prompt_tokens + data.max_demonstration_tokens)
    layout = (model.tensor_model_parallel_size, model.pipeline_model_parallel_size, model.context_parallel_size)
    rows = [
        (
            "nodes x processes",
            f"{trainer.num_nodes} x {trainer.devices} = {trainer.num_nodes * trainer.devices}: "
            f"tensor {layout[0]} x pipeline {layout[1]} x context {layout[2]} x data {ranks}",
        ),
        ("rollouts a step", f"{data.prompts_per_step} prompts x {data.samples_per_prompt} samples = {sequences} sequences"),
        ("updates a step", f"{updates}, of {sequences // updates} sequences"),
        (
            "a data-parallel rank, an update",
            f"{share} sequences, micro-batches of {model.micro_batch_size}: {ceil(share / model.micro_batch_size)}",
        ),
        ("demonstrations a step", _demonstrations(data.demonstrations_per_step, ranks, model.micro_batch_size)),
        ("tokens a step, at most", f"{tokens:,}"),
        ("steps", f"{trainer.max_steps}, after {warmup.steps} of warm-up"),
        ("demonstrations a warm-up step", _demonstrations(warmup.demonstrations_per_step, ranks, model.micro_batch_size)),
        ("validation", _validation(config)),
    ]
    meta = _meta_update(config, sequences)
    return rows + ([("meta-update", meta)] if meta else [])


def memory_table(config: Config) -> list[Row]:
    """Parameters, and GiB of the fullest rank. Empty where the model's config is neither on this machine nor known."""
    architecture = architecture_of(config.model)
    if architecture is None:
        return []
    held = rank_parameters(architecture, config)
    rows = [
        ("parameters", f"{architecture.parameters:,} ({held:,} on the fullest rank)"),
        *((f"policy {name}", size) for name, size in _trained(held, config, config.optim)),
    ]
    if lookup(config, "method.rl.advantage") == "gae":
        # The critic has the policy's body, and one number out instead of the vocabulary.
        critic = rank_parameters(architecture, config, output=False)
        rows += [(f"critic {name}", size) for name, size in _trained(critic, config, config.critic.optim)]
    if lookup(config, "method.rl.kl_coef"):
        rows.append(("reference weights", held * _weight_bytes(config)))
    if lookup(config, "controller.eta_mu"):
        rows.append(("kept difference", ceil(held / _shards(config, config.optim)) * 4))
    sizes = [size for _, size in rows[1:]]
    return [rows[0], *((name, _gib(size)) for name, size in rows[1:]), ("static memory a rank", _gib(sum(sizes)))]


def rank_parameters(architecture: Architecture, config: Config, *, output: bool = True) -> int:
    """Parameters of the fullest rank. Norms count as split over tensor ranks though each holds them all: below 0.1 percent."""
    model = config.model
    layers = architecture.num_hidden_layers * architecture.layer_parameters
    embedding, stages = architecture.embedding_parameters, model.pipeline_model_parallel_size
    matrices = 1 + (output and not architecture.tie_word_embeddings)
    # Input and output embeddings are on the first and the last stage; tied ones are then held by both.
    vocabulary = embedding * (matrices if stages == 1 else 1)
    return ceil((layers / stages + vocabulary + architecture.hidden_size) / model.tensor_model_parallel_size)


def _trained(parameters: int, config: Config, optim: OptimConfig) -> Iterator[tuple[str, int]]:
    bf16 = config.trainer.precision == "bf16"
    yield "weights", parameters * _weight_bytes(config)
    yield "gradients (fp32)", parameters * 4
    # Adam's two moments, and fp32 main weights where the weights themselves are bf16.
    yield "optimizer state", ceil(parameters / _shards(config, optim)) * (12 if bf16 else 8)


def _shards(config: Config, optim: OptimConfig) -> int:
    """Ranks over which the distributed optimiser splits a model-parallel rank's parameters."""
    return data_parallel_size(config) * config.model.context_parallel_size if optim.use_distributed_optimizer else 1


def _weight_bytes(config: Config) -> int:
    return 2 if config.trainer.precision == "bf16" else 4


def _demonstrations(count: int, ranks: int, size: int) -> str:
    share = ceil(count / ranks)
    return f"{count}; a data-parallel rank: {share}, micro-batches: {ceil(share / size)}"


def _validation(config: Config) -> str:
    validation = config.validation
    when = f"every {validation.every} steps" if validation.every else "at the end only"
    rollouts = f"{validation.prompts} prompts x {validation.samples} = {validation.prompts * validation.samples} rollouts"
    return f"{rollouts}, {when}; {validation.final_prompts} prompts at the end"


def _meta_update(config: Config, sequences: int) -> str | None:
    every = lookup(config, "controller.meta_every")
    prompts, samples = (lookup(config, f"controller.meta_gradient.val_{name}") for name in ("prompts", "samples"))
    if not lookup(config, "controller.eta_mu") or None in (every, prompts, samples):
        return None
    rollouts = prompts * samples
    return (
        f"{prompts} prompts x {samples} = {rollouts} rollouts and a backward pass over them every {every} steps: "
        f"{rollouts / every / sequences:.1%} more rollouts"
    )


def _gib(size: float) -> str:
    return f"{size / GIB:,.3f} GiB"
