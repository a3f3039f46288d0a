"""Evaluation outside training: a trained or a hub model on benchmarks, or on its task's own test problems."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from nemo_amft.algorithms.build import build_engine, build_sampler, build_seeing_engine, load_chat, load_model, on_main_first
from nemo_amft.algorithms.evaluation import evaluate
from nemo_amft.algorithms.sampling import Sampler
from nemo_amft.config import launcher
from nemo_amft.config.rules import lookup
from nemo_amft.config.run_dir import check_folder, prepare, refuse_foreign_files
from nemo_amft.config.run_dir import run_dir as run_directory
from nemo_amft.config.schema import Config
from nemo_amft.data.chat import ChatTemplate
from nemo_amft.data.filtering import drop_long_prompts
from nemo_amft.data.thoughts import check_thinking, thoughts_of
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
from nemo_amft.parallel import failures, groups, platform, run_lock, shared_memory, signals
from nemo_amft.parallel.groups import Place
from nemo_amft.tasks.base import Images, Task, evaluation_sets, images_of
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
    run_dir = run_directory(config.exp_manager)
    refuse_foreign_files(run_dir)
    run_lock.hold(run_dir)
    if launcher.rank() == 0:
        failures.forget(run_dir)
    t = config.trainer
    place = groups.initialize(config.model, t.seed, t.phase_timeout_s, t.meeting_timeout_s)
    with failures.shown_once(run_dir, place.rank):
        check_folder(run_dir)
        shared_memory.check(config, platform.is_gpu())
        prepare(config)
        task = config.task.build(config.data, config.trainer.seed) if mathematical is None else None
        images = None if task is None else images_of(task, task_problems(task)["test"])
        hub = load_model(config, run_dir, place, trained=images is None)
        chat = load_chat(config, run_dir, place, hub, None)
        if mathematical is not None:
            task = BenchmarkTask(mathematical.thinking)
            sets = on_main_first(place, lambda: load_benchmarks(chosen, config.evaluation, mathematical))
            refuse_long_prompts(sets, chat.prompt_ids, config.data.max_prompt_tokens)
            seen = leaked(config.data, sets, config.evaluation.check_training) if place.is_main else None
        else:
            problems = on_main_first(place, lambda: test_problems(config, task, chat))
        if (thinking := lookup(config, "task.thinking")) is not None:
            examples = problems["test"] if mathematical is None else next(iter(sets.values())).examples
            check_thinking(thinking, thoughts_of(chat, examples))
        sampler = ready_sampler(config, hub, weights, chat, task, place, images)
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
    run_lock.release()
    return 0


def ready_sampler(
    config: Config,
    hub: HubModel,
    weights: Path | None,
    chat: ChatTemplate,
    task: Task | BenchmarkTask,
    place: Place,
    images: Images | None = None,
) -> Sampler:
    """Policy, engine and graders, awake. `weights`: a training checkpoint for the policy; None: the hub model's own. With the
    task's `images` there is no policy, as only vLLM runs models that see."""
    if images is not None:
        if weights is not None:
            raise UserError("checkpoint: found a training checkpoint, expected a hub model that sees, as the task shows images")
        engine = build_seeing_engine(config, hub, getattr(task, "max_turns", 1))
    else:
        with platform.megatron():
            chunks = build_policy(hub.config, config.model, config.trainer.precision, hub.num_token_ids)
            load_hub_weights(chunks, hub.config, hub.path)
        if weights is not None:
            Checkpoints(weights.parent, 1, place).load(weights, {"policy": ForwardModel(chunks, config.model, place)})
        engine = build_engine(config, hub, chunks)
    timers = PhaseTimers(config.trainer.phase_timeout_s)
    sampler = build_sampler(config, engine, hub, chat, task, place, timers, images=images)
    engine.wake()
    return sampler


def task_problems(task: Task) -> dict[str, Sequence[Example]]:
    """The task's test problems (its D_val, where it has none) and those out of distribution, by name."""
    return {"test": task.examples("test") or task.examples("validation"), **evaluation_sets(task)}


def test_problems(config: Config, task: Task, chat: ChatTemplate) -> dict[str, list[Example]]:
    """Those of them that are asked for and whose prompts are not too long."""
    limit, most = config.data.max_prompt_tokens, config.validation.final_prompts
    return {
        name: drop_long_prompts(examples, chat, limit, f"data.{name}")[:most] for name, examples in task_problems(task).items()
    }


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
        RolloutWriter(run_dir, -1, sampler.place.is_main).write(0, drawn, kind, sampler.images)
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
