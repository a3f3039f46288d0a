"""Evaluation outside training: a trained or a hub model on the test problems, by the same sampler."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from nemo_amft.algorithms.build import build_engine, build_sampler, load_model, on_main_first
from nemo_amft.algorithms.evaluation import evaluate
from nemo_amft.config import launcher
from nemo_amft.config.run_dir import prepare
from nemo_amft.config.schema import Config
from nemo_amft.data.chat import ChatTemplate
from nemo_amft.data.filtering import drop_long_prompts
from nemo_amft.models import checkpoints
from nemo_amft.models.builder import build_policy
from nemo_amft.models.checkpoints import Checkpoints
from nemo_amft.models.hub_weights import load_hub_weights
from nemo_amft.models.trainable import ForwardModel
from nemo_amft.observe.files import write_atomically
from nemo_amft.observe.progress import final_table
from nemo_amft.observe.rollouts import RolloutWriter
from nemo_amft.observe.timers import PhaseTimers
from nemo_amft.parallel import failures, groups, platform
from nemo_amft.types import UserError


def evaluate_run(config: Config, checkpoint: str | None) -> int:
    """Write evaluation.json and every response to the run directory of `config`, print the table. Returns the exit status."""
    if checkpoint is None:
        raise UserError("checkpoint: found nothing, expected checkpoint=PATH: a run directory, a checkpoint, or a hub model")
    config, weights = locate(config, checkpoint)
    platform.install()
    run_dir, _ = prepare(config)
    if launcher.rank() == 0:
        failures.forget(run_dir)
    place = groups.initialize(config.model, config.trainer.seed)
    with failures.shown_once(run_dir, place.rank):
        hub = load_model(config, run_dir, place)
        chat = ChatTemplate(hub.tokenizer)
        task = config.task.build(config.data, config.trainer.seed)
        problems = on_main_first(place, lambda: task.examples("test") or task.examples("validation"))
        problems = drop_long_prompts(problems, chat, config.data.max_prompt_tokens, "data.test")[
            : config.validation.final_prompts
        ]
        with platform.megatron():
            chunks = build_policy(hub.config, config.model, config.trainer.precision)
            load_hub_weights(chunks, hub.config, hub.path)
        if weights is not None:
            Checkpoints(weights.parent, 1, place).load(weights, {"policy": ForwardModel(chunks, config.model, place)})
        timers = PhaseTimers(config.trainer.phase_timeout_s)
        engine = build_engine(config, hub, chunks)
        sampler = build_sampler(config, engine, hub, chat, task, place, timers)
        engine.wake()
        v = config.validation
        found, drawn = evaluate(sampler, "test", problems, v.samples, config.rollout.max_new_tokens, v.temperature)
        if place.is_main:
            RolloutWriter(run_dir, -1, True).write(0, drawn, "evaluation")
            result = {"checkpoint": checkpoint, "samples": v.samples, "temperature": v.temperature, **found}
            write_atomically(run_dir / "evaluation.json", json.dumps(result, indent=2) + "\n")
            final_table([(name, f"{value:.4g}") for name, value in found.items()] + [("responses", f"{run_dir}/rollouts")])
        if sampler.rewards is not None:
            sampler.rewards.close()
        engine.close()
        groups.shutdown()
    return 0


def locate(config: Config, checkpoint: str) -> tuple[Config, Path | None]:
    """What to build and which training checkpoint to load into it (None: the hub model's own weights). Raises UserError."""
    folder = Path(checkpoint)
    hub_folder = next((f for f in (folder, folder / "hf") if (f / "config.json").exists()), None)
    if hub_folder is not None or not folder.exists():
        path = str(hub_folder) if hub_folder is not None else checkpoint  # not on this machine: a hub id
        return replace(config, model=replace(config.model, path=path, config_overrides={})), None
    return config, checkpoints.find(checkpoint)
