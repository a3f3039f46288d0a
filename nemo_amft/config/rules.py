"""Combinations that cannot work, found before any model is built. Each is one line: the keys, what was found, what is expected.

Fields of plug-ins are looked at only where the plug-in has them; a plug-in with rules of its own has a static
`validate(config, plugin_config)` that raises UserError.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from functools import reduce
from pathlib import Path
from typing import Any

from nemo_amft.config import data_rules, launcher
from nemo_amft.config.architecture import Architecture, architecture_of
from nemo_amft.config.free_keys import unknown_keys, wrong_sizes
from nemo_amft.config.plugins import load_function
from nemo_amft.config.ranges import out_of_range
from nemo_amft.config.schema import Config
from nemo_amft.config.validate import PLUGIN_SECTIONS
from nemo_amft.data.template import parse_time
from nemo_amft.parallel import signals
from nemo_amft.types import UserError

MAX_VLLM_TEMPERATURE = 2.0

_GROUP_ADVANTAGES = ("grpo", "dr_grpo", "rloo")


def check(config: Config, *, on_this_machine: bool = True, module: str = "nemo_amft.train") -> None:
    """Raise UserError for the first rule that `config` breaks. Arguments as for `violations`."""
    for message in violations(config, on_this_machine=on_this_machine, module=module):
        raise UserError(message)


def violations(config: Config, *, on_this_machine: bool = True, module: str = "nemo_amft.train") -> Iterator[str]:
    """One line for each broken rule.

    `on_this_machine`: also what depends on it and on how the processes were started (a plan leaves that out).
    `module`: the entry point to name in the command that would start them.
    """
    broken = ranges(config)
    yield from broken
    if broken:
        return  # the rules below divide by these numbers
    rules: list[Callable[[Config], Iterator[str]]] = [
        unknown_keys, _layout, _divisibility, _pipeline_and_recompute, _optimizer, _lengths,
        _rollout, _batches, _validation, _controller, _files, data_rules.violations, _plugins, _reward, _time,
    ]  # fmt: skip
    for rule in rules:
        yield from rule(config)
    if module == "nemo_amft.train" and lookup(config, "task.form") == "image":
        yield "task.form: found image, expected text: a policy that sees cannot be trained here (nemo_amft.evaluate takes one)"
    if on_this_machine:
        yield from _transformer_engine(config)
        yield from _offload(config)
        yield from _processes(config, module)


def ranges(config: Config) -> list[str]:
    """One line for each number outside its range; nothing can be computed from such a configuration."""
    return [*out_of_range(lambda key: lookup(config, key)), *wrong_sizes(config.model.config_overrides)]


def lookup(config: Config, key: str) -> Any:
    """The value at a dotted key, None where a plug-in has no such field."""
    head, *rest = key.split(".")
    start = getattr(config, head)
    start = getattr(start, "config", start) if head in PLUGIN_SECTIONS else start
    return reduce(lambda value, name: getattr(value, name, None), rest, start)


def data_parallel_size(config: Config) -> int:
    """Replicas of the policy."""
    model = config.model
    ranks = model.tensor_model_parallel_size * model.pipeline_model_parallel_size * model.context_parallel_size
    return config.trainer.num_nodes * config.trainer.devices // ranks


def _layout(config: Config) -> Iterator[str]:
    model, world = config.model, config.trainer.num_nodes * config.trainer.devices
    tp, pp, cp = model.tensor_model_parallel_size, model.pipeline_model_parallel_size, model.context_parallel_size
    if world % (tp * pp * cp):
        yield (
            f"trainer.num_nodes * trainer.devices: found {world}, expected a multiple of "
            f"tensor * pipeline * context parallel size, {tp} * {pp} * {cp} = {tp * pp * cp}"
        )
    if model.expert_model_parallel_size > 1:
        yield f"model.expert_model_parallel_size: found {model.expert_model_parallel_size}, expected 1: only dense models here"
    if cp > 1 and not model.sequence_packing:
        yield f"model.sequence_packing: found false with model.context_parallel_size {cp}, which deals out packed sequences"
    if model.sequence_parallel and tp == 1:
        yield "model.sequence_parallel: found true with model.tensor_model_parallel_size 1, expected 2 or more"


def _divisibility(config: Config) -> Iterator[str]:
    model, architecture = config.model, architecture_of(config.model)
    if architecture is None:
        return  # the model's config is not here yet; the builder checks again
    heads, groups, layers = architecture.num_attention_heads, architecture.num_key_value_heads, architecture.num_hidden_layers
    if heads % groups:
        yield f"num_attention_heads: found {heads}, expected a multiple of num_key_value_heads, {groups}"
    if model.path is None and architecture.hidden_size % (2 * heads):
        yield (
            f"model.scratch.hidden_size: found {architecture.hidden_size}, "
            f"expected a multiple of {2 * heads}: an even number for each of {heads} heads"
        )
    tp = model.tensor_model_parallel_size
    if heads % tp or groups % tp:
        yield (
            f"model.tensor_model_parallel_size: found {tp}, expected a divisor of the model's "
            f"{heads} heads and {groups} key-value heads"
        )
    rollout_tp = config.rollout.tensor_model_parallel_size
    if heads % rollout_tp:
        yield f"rollout.tensor_model_parallel_size: found {rollout_tp}, expected a divisor of the model's {heads} heads"
    yield from indivisible(config, architecture)
    chunks = model.pipeline_model_parallel_size * (model.virtual_pipeline_model_parallel_size or 1)
    if layers % chunks:
        yield (
            f"model.pipeline_model_parallel_size (times virtual): found {chunks}, "
            f"expected a divisor of the model's {layers} layers"
        )


def indivisible(config: Config, architecture: Architecture) -> Iterator[str]:
    """What a tensor-parallel size does not divide, beyond the heads."""
    sizes = {"model.tensor_model_parallel_size": config.model.tensor_model_parallel_size}
    if config.rollout.engine == "vllm":
        sizes["rollout.tensor_model_parallel_size"] = tp = config.rollout.tensor_model_parallel_size
        groups = architecture.num_key_value_heads
        if max(tp, groups) % min(tp, groups):
            yield (
                f"rollout.tensor_model_parallel_size: found {tp}, expected a divisor or a multiple of the model's {groups} "
                "key-value heads"
            )
    for key, tp in sizes.items():
        if architecture.intermediate_size % tp:
            yield f"{key}: found {tp}, expected a divisor of the model's intermediate size, {architecture.intermediate_size}"


def _pipeline_and_recompute(config: Config) -> Iterator[str]:
    model = config.model
    if model.virtual_pipeline_model_parallel_size is not None and model.pipeline_model_parallel_size == 1:
        yield (
            f"model.virtual_pipeline_model_parallel_size: found {model.virtual_pipeline_model_parallel_size} with "
            "model.pipeline_model_parallel_size 1, expected 2 or more pipeline ranks"
        )
    full = model.recompute_granularity == "full"
    if model.recompute_method is not None and not full:
        found = model.recompute_granularity or "null"
        yield f"model.recompute_method: found {model.recompute_method}, expected model.recompute_granularity full, not {found}"
    if full and (model.recompute_method is None or model.recompute_num_layers is None):
        yield "model.recompute_granularity: found full, expected model.recompute_method and model.recompute_num_layers with it"


def _optimizer(config: Config) -> Iterator[str]:
    for section, optim in (("optim", config.optim), ("critic.optim", config.critic.optim)):
        if optim.overlap_param_gather and not (optim.use_distributed_optimizer and optim.overlap_grad_reduce):
            yield f"{section}.overlap_param_gather: found true, expected use_distributed_optimizer and overlap_grad_reduce true"
        if optim.optimizer_cpu_offload and not optim.use_distributed_optimizer:
            yield f"{section}.optimizer_cpu_offload: found true, expected {section}.use_distributed_optimizer true with it"
        if optim.min_lr > optim.lr:
            yield f"{section}.min_lr: found {optim.min_lr}, expected at most {section}.lr, {optim.lr}"


def _lengths(config: Config) -> Iterator[str]:
    architecture = architecture_of(config.model)
    if architecture is None:
        return
    longest, prompt = architecture.max_position_embeddings, config.data.max_prompt_tokens
    source = "model.scratch" if config.model.path is None else "the model's"
    conversation = config.rollout.max_conversation_tokens
    if conversation is not None and conversation < config.rollout.max_new_tokens:
        yield (
            f"rollout.max_conversation_tokens: found {conversation}, expected at least rollout.max_new_tokens, "
            f"{config.rollout.max_new_tokens}"
        )
    response = "rollout.max_new_tokens" if conversation is None else "rollout.max_conversation_tokens"
    for key in (response, "data.max_demonstration_tokens"):
        tokens = lookup(config, key)
        if prompt + tokens > longest:
            dot = "." if config.model.path is None else " "
            yield (
                f"data.max_prompt_tokens + {key}: found {prompt} + {tokens} = {prompt + tokens}, "
                f"expected at most {source}{dot}max_position_embeddings, {longest}"
            )


def _rollout(config: Config) -> Iterator[str]:
    rollout, model = config.rollout, config.model
    if rollout.engine == "megatron":
        for part in ("pipeline_model", "context"):
            if (size := getattr(model, f"{part}_parallel_size")) > 1:
                reason = "rollout=megatron decodes with tensor and data parallelism only"
                yield f"model.{part}_parallel_size: found {size}, expected 1: {reason}"
        if rollout.tensor_model_parallel_size > 1:
            yield (
                f"rollout.tensor_model_parallel_size: found {rollout.tensor_model_parallel_size}, expected 1: "
                "rollout=megatron decodes in the policy's own layout"
            )
    world = config.trainer.num_nodes * config.trainer.devices
    if world % rollout.tensor_model_parallel_size:
        yield (
            f"rollout.tensor_model_parallel_size: found {rollout.tensor_model_parallel_size}, "
            f"expected a divisor of the job's {world} processes"
        )
    if "" in rollout.stop:
        yield "rollout.stop: found an empty string, expected text that ends a response"
    if rollout.engine == "vllm":
        for key in ("rollout", "validation", "evaluation"):
            if (found := lookup(config, f"{key}.temperature")) > MAX_VLLM_TEMPERATURE:
                yield f"{key}.temperature: found {found:g}, expected at most {MAX_VLLM_TEMPERATURE:g}, vLLM's limit"
    if (rollout.top_p < 1 or rollout.top_k > 0) and rollout.temperature != 1.0:
        yield (
            f"rollout.temperature: found {rollout.temperature} with rollout.top_p {rollout.top_p} and rollout.top_k "
            f"{rollout.top_k}, expected 1: where these cut, log-probs to compare the policy's with are those of temperature 1"
        )
    cap = lookup(config, "method.rl.importance_cap")
    if cap is not None and (rollout.top_p < 1 or rollout.top_k > 0):
        key, value = ("top_p", rollout.top_p) if rollout.top_p < 1 else ("top_k", rollout.top_k)
        off = 1 if key == "top_p" else 0
        yield f"rollout.{key}: found {value} with method.rl.importance_cap {cap}, expected {off}: the weights would be biased"


def _batches(config: Config) -> Iterator[str]:
    data, ranks = config.data, data_parallel_size(config)
    updates = lookup(config, "method.rl.updates_per_rollout_batch")
    if ranks and updates:
        sequences = data.prompts_per_step * data.samples_per_prompt
        if data.prompts_per_step % updates:
            yield (
                f"method.rl.updates_per_rollout_batch: found {updates}, "
                f"expected a divisor of data.prompts_per_step, {data.prompts_per_step}"
            )
        elif sequences % (ranks * updates):
            yield (
                f"data.prompts_per_step * data.samples_per_prompt: found {sequences}, expected a multiple of "
                f"data-parallel size * updates, {ranks} * {updates} = {ranks * updates}"
            )
        if data.demonstrations_per_step < updates:
            yield (
                f"data.demonstrations_per_step: found {data.demonstrations_per_step}, "
                f"expected at least one for each of the step's {updates} updates"
            )
    advantage = lookup(config, "method.rl.advantage")
    if advantage in _GROUP_ADVANTAGES and data.samples_per_prompt < 2:
        yield (
            f"data.samples_per_prompt: found {data.samples_per_prompt}, "
            f"expected at least 2: {advantage} compares the responses to one prompt"
        )


def _validation(config: Config) -> Iterator[str]:
    v = config.validation
    if config.benchmarks:
        from nemo_amft.evaluation.problems import wanted  # knows the published sets
        from nemo_amft.evaluation.run import mathematics

        yield from _complaints(lambda: wanted(config.benchmarks) and mathematics(config))
    if v.benchmarks_every and (not v.every or v.benchmarks_every % v.every):
        yield f"validation.benchmarks_every: found {v.benchmarks_every}, expected a multiple of validation.every, {v.every}"
    if v.benchmarks_every and not any(config.benchmarks.values()):
        yield f"validation.benchmarks_every: found {v.benchmarks_every} without benchmarks, expected benchmarks.NAME=SOURCE"


def _complaints(check: Callable[[], object]) -> Iterator[str]:
    """What `check` raises."""
    try:
        check()
    except ValueError as error:
        yield str(error)


def _controller(config: Config) -> Iterator[str]:
    low, start, high = (lookup(config, f"controller.mu_{name}") for name in ("min", "init", "max"))
    if None not in (low, start, high) and not low <= start <= high:
        yield f"controller.mu_init: found {start}, expected from mu_min {low} to mu_max {high}"
    learned = lookup(config, "controller.meta_gradient") is not None
    if learned and not getattr(config.method.cls, "has_both_terms", True):
        yield (
            f"controller: found {config.controller.cls.__name__}, expected controller=fixed: {config.method.cls.__name__} does "
            "not weigh L_SFT against L_RL in each step, so there is no mu to learn"
        )


def _files(config: Config) -> Iterator[str]:
    if not config.exp_manager.exp_dir and config.exp_manager.explicit_log_dir is None:
        found = "null" if config.exp_manager.exp_dir is None else "nothing"
        yield f"exp_manager.exp_dir: found {found}, expected a folder, or the run directory in exp_manager.explicit_log_dir"
    if not config.exp_manager.name.strip():
        yield "exp_manager.name: found nothing, expected the run's name"
    folder = config.exp_manager.explicit_log_dir
    if folder is not None and Path(folder).exists() and not Path(folder).is_dir():
        yield f"exp_manager.explicit_log_dir: found {folder}, a file, expected a folder, new or of a run to continue"
    if config.model.path is None and config.model.config_overrides:
        yield "model.config_overrides: found with model.path null, expected keys under model.scratch instead"
    template = config.model.chat_template
    if template is not None and not Path(template).is_file():
        yield f"model.chat_template: expected a file, found {template!r}, which does not exist"
    if config.model.chat_template_time is not None:
        yield from _complaints(lambda: parse_time("model.chat_template_time", config.model.chat_template_time))
    for key in ("model.path", "model.tokenizer", "critic.path"):
        value = lookup(config, key)
        if value is not None and not (value.strip() and Path(value).exists()) and looks_local(value):
            yield f"{key}: expected a hub id or a folder, found {value!r}, which does not exist"


def looks_local(path: str) -> bool:
    """Whether a name can only be a path: a hub id is NAME or OWNER/NAME."""
    ending = path.endswith((".parquet", ".jsonl", ".json", "/"))
    return not path.strip() or path.startswith((".", "/", "~")) or path.count("/") > 1 or ending


def _plugins(config: Config) -> Iterator[str]:
    for name in PLUGIN_SECTIONS:
        plugin = getattr(config, name)
        hook = getattr(plugin.cls, "validate", None)
        if hook is not None:
            yield from _complaints(lambda hook=hook, plugin=plugin: hook(config, plugin.config))


def _reward(config: Config) -> Iterator[str]:
    if config.reward.function is not None:
        yield from _complaints(lambda: load_function("reward.function", config.reward.function))


def _time(config: Config) -> Iterator[str]:
    if config.exp_manager.max_time_per_run is not None:
        yield from _complaints(lambda: signals.seconds(config.exp_manager.max_time_per_run))


def _transformer_engine(config: Config) -> Iterator[str]:
    model = config.model
    if model.transformer_impl != "transformer_engine":
        return
    wanted = "model.transformer_impl: found transformer_engine"
    if importlib.util.find_spec("transformer_engine") is None:
        yield f"{wanted}, expected Transformer Engine, which is not installed here"
        return
    from nemo_amft.parallel import platform  # imports torch, so only where the answer is needed

    if not platform.is_gpu():
        yield f"{wanted}, expected a GPU: Transformer Engine's attention needs one"


def _offload(config: Config) -> Iterator[str]:
    for section, optim in (("optim", config.optim), ("critic.optim", config.critic.optim)):
        if not optim.optimizer_cpu_offload:
            continue
        from nemo_amft.parallel import platform  # imports torch, so only where the answer is needed

        if not platform.is_gpu():
            yield f"{section}.optimizer_cpu_offload: found true, expected a GPU: elsewhere it is in host memory anyway"


def _processes(config: Config, module: str) -> Iterator[str]:
    started, how = launcher.processes_started()
    nodes, devices = config.trainer.num_nodes, config.trainer.devices
    if started != nodes * devices:
        launch = f"torchrun {f'--nnodes {nodes} ' if nodes > 1 else ''}--nproc-per-node {devices} -m {module}"
        yield (
            f"trainer.num_nodes * trainer.devices: found {nodes} * {devices} = {nodes * devices}, "
            f"expected the number of processes started ({how}); start with: {launch} ..."
        )
