"""Evaluation outside training: a trained or a hub model on benchmarks, or on its task's own test problems."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from nemo_amft.algorithms.build import build_engine, build_sampler, load_model, on_main_first
from nemo_amft.algorithms.evaluation import evaluate
from nemo_amft.algorithms.sampling import Sampler
from nemo_amft.config import launcher
from nemo_amft.config.run_dir import prepare
from nemo_amft.config.schema import Config
from nemo_amft.data.chat import ChatTemplate
from nemo_amft.data.filtering import drop_long_prompts
from nemo_amft.evaluation.checkpoint import fingerprint, hub_model_of
from nemo_amft.evaluation.leakage import leaked
from nemo_amft.evaluation.problems import load_benchmarks, wanted
from nemo_amft.evaluation.run import BenchmarkRun, BenchmarkTask, mathematics, refuse_long_prompts
from nemo_amft.models import checkpoints
from nemo_amft.models.builder import build_policy
from nemo_amft.models.checkpoints import Checkpoints
from nemo_amft.models.hub_model import HubModel
from nemo_amft.models.hub_weights import load_hub_weights
from nemo_amft.models.trainable import ForwardModel
from nemo_amft.observe.files import write_atomically
from nemo_amft.observe.progress import final_table
from nemo_amft.observe.rollouts import RolloutWriter
from nemo_amft.observe.timers import PhaseTimers
from nemo_amft.parallel import failures, groups, platform, signals
from nemo_amft.parallel.groups import Place
from nemo_amft.tasks.base import Task, evaluation_sets
from nemo_amft.types import Example, UserError


def evaluate_run(config: Config, checkpoint: str | None) -> int:
    """Write evaluation.json and every response to the run directory of `config`, print the table. Returns the exit status.

    On the benchmarks of `config`; without any, on the test problems of its task. Where it was asked to stop, the process ends
    with signals.STATUS, and the same command continues.
    """
    if checkpoint is None:
        raise UserError("checkpoint: found nothing, expected checkpoint=PATH: a run directory, a checkpoint, or a hub model")
    chosen = wanted(config.benchmarks)
    mathematical = mathematics(config) if chosen else None
    config, weights = locate(config, checkpoint)
    stop = signals.StopRequests(config.exp_manager.max_time_per_run)
    platform.install()
    run_dir, _ = prepare(config)
    if launcher.rank() == 0:
        failures.forget(run_dir)
    place = groups.initialize(config.model, config.trainer.seed)
    with failures.shown_once(run_dir, place.rank):
        hub = load_model(config, run_dir, place)
        chat = ChatTemplate(hub.tokenizer)
        if mathematical is not None:
            task = BenchmarkTask(mathematical.thinking)
            sets = on_main_first(place, lambda: load_benchmarks(chosen, config.evaluation, mathematical))
            refuse_long_prompts(sets, chat.prompt_ids, config.data.max_prompt_tokens)
            seen = leaked(config.data.train, sets, config.evaluation.check_training) if place.is_main else None
        else:
            task = config.task.build(config.data, config.trainer.seed)
            problems = on_main_first(place, lambda: test_problems(config, task, chat))
        sampler = ready_sampler(config, hub, weights, chat, task, place)
        finished = True
        if mathematical is not None:
            about = {"checkpoint": checkpoint, "thinking": mathematical.thinking, "system_prompt": mathematical.system_prompt}
            model = fingerprint(weights if weights is not None else hub.path)
            finished = BenchmarkRun(config, sampler, sets, run_dir, about, model, seen, stop.agreed).complete()
        else:
            evaluate_task(config, sampler, problems, run_dir, checkpoint)
        if sampler.rewards is not None:
            sampler.rewards.close()
        sampler.engine.close()
        if not finished:
            signals.leave()
        groups.shutdown()
    return 0


def ready_sampler(
    config: Config, hub: HubModel, weights: Path | None, chat: ChatTemplate, task: Task | BenchmarkTask, place: Place
) -> Sampler:
    """Policy, engine and graders, awake. `weights`: a training checkpoint for the policy; None: the hub model's own."""
    with platform.megatron():
        chunks = build_policy(hub.config, config.model, config.trainer.precision)
        load_hub_weights(chunks, hub.config, hub.path)
    if weights is not None:
        Checkpoints(weights.parent, 1, place).load(weights, {"policy": ForwardModel(chunks, config.model, place)})
    timers = PhaseTimers(config.trainer.phase_timeout_s)
    engine = build_engine(config, hub, chunks)
    sampler = build_sampler(config, engine, hub, chat, task, place, timers)
    engine.wake()
    return sampler


def test_problems(config: Config, task: Task, chat: ChatTemplate) -> dict[str, list[Example]]:
    """The task's test problems (its D_val, where it has none) and those out of distribution, by name."""
    found = {"test": task.examples("test") or task.examples("validation"), **evaluation_sets(task)}
    limit, most = config.data.max_prompt_tokens, config.validation.final_prompts
    return {name: drop_long_prompts(examples, chat, limit, f"data.{name}")[:most] for name, examples in found.items()}


def evaluate_task(
    config: Config, sampler: Sampler, problems: dict[str, Sequence[Example]], run_dir: Path, checkpoint: str
) -> None:
    """Accuracy on the task's own problems, graded by the task."""
    v = config.validation
    found: dict[str, float] = {}
    for name, examples in problems.items():
        scores, drawn = evaluate(sampler, name, examples, v.samples, config.rollout.max_new_tokens, v.temperature)
        found |= scores
        kind = "evaluation" if name == "test" else f"evaluation_{name}"
        RolloutWriter(run_dir, -1, sampler.place.is_main).write(0, drawn, kind)
    if sampler.place.is_main:
        result = {"checkpoint": checkpoint, "samples": v.samples, "temperature": v.temperature, **found}
        write_atomically(run_dir / "evaluation.json", json.dumps(result, indent=2) + "\n")
        final_table([(name, f"{value:.4g}") for name, value in found.items()] + [("responses", f"{run_dir}/rollouts")])


def locate(config: Config, checkpoint: str) -> tuple[Config, Path | None]:
    """What to build and which training checkpoint to load into it (None: the hub model's own weights). Raises UserError."""
    path = hub_model_of(checkpoint)
    if path is not None:
        return replace(config, model=replace(config.model, path=path, config_overrides={})), None
    return config, checkpoints.find(checkpoint)
