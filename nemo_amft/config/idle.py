"""Keys that were given and do nothing in this run: said before it begins, as whoever sets a key expects something of it.

Only what stands on the command line is looked at, beside meta-updates that never come: a YAML may hold the critic's rate for
the methods that have a critic.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from nemo_amft.config.rules import lookup
from nemo_amft.config.schema import Config
from nemo_amft.types import UserError

Reason = Callable[[Config], str]
"""Why the keys do nothing; "" where they do something."""


def idle(config: Config, given: Sequence[str]) -> Iterator[str]:
    """One line for each key of `given` (dotted names, as on the command line) that changes nothing, and why."""
    meta_every, max_steps = lookup(config, "controller.meta_every"), config.trainer.max_steps
    if meta_every is not None and lookup(config, "controller.eta_mu") and meta_every >= max_steps:
        yield f"controller.meta_every={meta_every}: no meta-update is made in {max_steps} steps (trainer.max_steps)"
    for key in dict.fromkeys(given):
        for prefixes, reason in RULES:
            if key.startswith(prefixes) and (why := reason(config)):
                yield f"{key} does nothing: {why}"
                break


def _when(key: str, *values: Any) -> Reason:
    """Idle where `key` has one of `values`."""

    def reason(config: Config) -> str:
        found = lookup(config, key)
        return f"{key} is {_shown(found)}" if found in values else ""

    return reason


def _unless(key: str, *values: Any) -> Reason:
    """Idle where `key` has another value than one of `values`."""

    def reason(config: Config) -> str:
        found = lookup(config, key)
        return "" if found in values else f"{key} is {_shown(found)}"

    return reason


def _shown(value: Any) -> str:
    """As YAML writes it."""
    return {None: "null", True: "true", False: "false"}[value] if value is None or isinstance(value, bool) else f"{value}"


def _given(key: str) -> Reason:
    """Idle where `key` has a value."""
    return lambda config: "" if lookup(config, key) is None else f"{key} is given"


def _method(attribute: str, what: str) -> Reason:
    def reason(config: Config) -> str:
        try:
            has = getattr(config.method.build(config.rollout.longest), attribute, True)
        except (UserError, TypeError, ValueError):
            return ""  # said by the rules
        return "" if has else f"{config.method.cls.__name__} has no {what}"

    return reason


def _late(key: str) -> Reason:
    """Idle where so many steps are never made."""

    def reason(config: Config) -> str:
        found, steps = lookup(config, key), config.trainer.max_steps
        return f"the run has {steps} steps; it is done at the end in any case" if found and found >= steps else ""

    return reason


def _unread_files(config: Config) -> str:
    """A task says that it generates its problems by `generated = True`."""
    return f"{config.task.cls.__name__} generates its problems" if getattr(config.task.cls, "generated", False) else ""


def _select_late(config: Config) -> str:
    w = config.warmup
    return f"warm-up has {w.steps} steps" if w.select_every > w.steps else ""


RULES: tuple[tuple[tuple[str, ...], Reason], ...] = (
    (("critic.",), _method("uses_critic", "critic")),
    (("data.prompts_per_step", "data.samples_per_prompt"), _method("rolls_out", "rollouts to train on")),
    (("method.rl.gamma", "method.rl.lam", "method.rl.whiten_advantages"), _unless("method.rl.advantage", "gae", None)),
    (("method.rl.whiten_floor",), _when("method.rl.advantage", "dr_grpo", "rloo")),
    (("controller.meta_gradient", "controller.meta_every"), _when("controller.eta_mu", 0)),
    (("controller.entropy_sign",), _when("controller.eta_h", 0)),
    (("warmup.select_every",), _select_late),
    (("warmup.demonstrations_per_step", "warmup.lr", "warmup.select"), _when("warmup.steps", 0)),
    (("model.scratch",), _given("model.path")),
    (("model.micro_batch_size",), _given("model.micro_batch_tokens")),
    (("model.recompute_num_layers",), _unless("model.recompute_granularity", "full")),
    (("rollout.sync_bucket_mb", "rollout.gpu_memory_utilization", "rollout.kv_cache_gb"), _when("rollout.engine", "megatron")),
    (("optim.min_lr",), _when("optim.lr_decay_style", "constant")),
    (("optim.optimizer_offload_fraction",), _when("optim.optimizer_cpu_offload", False)),
    (("exp_manager.wandb_logger_kwargs",), _when("exp_manager.create_wandb_logger", False)),
    (("evaluation.",), lambda config: "" if any(config.benchmarks.values()) else "there are no benchmarks"),
    (("data.train", "data.validation", "data.test"), _unread_files),
    (("data.validation_size",), _given("data.validation")),
    (("validation.every",), _late("validation.every")),
    (("checkpoint.every",), _late("checkpoint.every")),
)
"""Beginnings of keys, and why they do nothing."""
