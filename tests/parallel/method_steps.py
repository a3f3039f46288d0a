"""Real training steps of many methods, one after the other in the same ranks."""

from __future__ import annotations

import time
from pathlib import Path

from nemo_amft.algorithms.build import build_parts, load_model
from nemo_amft.algorithms.run import Run, close
from nemo_amft.algorithms.run_data import load_data
from nemo_amft.algorithms.trainer import Trainer
from nemo_amft.algorithms.warmup import after_warm_up, warm_up, warm_up_critic
from nemo_amft.config.schema import Config
from nemo_amft.data.chat import ChatTemplate
from nemo_amft.observe.metrics import Record, read_metrics
from nemo_amft.parallel import groups

SMALL = (
    "task._target_=tests.parallel.tiny_task.Tiny",
    "rollout=megatron",
    "model.scratch.hidden_size=32",
    "model.scratch.intermediate_size=48",
    "model.scratch.num_hidden_layers=2",
    "model.scratch.num_attention_heads=2",
    "model.scratch.initializer_range=0.1",
    "model.scratch.max_position_embeddings=64",
    # A large epsilon: with the usual one Adam turns rounding of tiny gradients into steps of full size, and those into other
    # tokens.
    "optim.lr=1e-3",
    "optim.eps=1e-3",
    "critic.optim.lr=1e-3",
    "critic.optim.eps=1e-3",
    "warmup.steps=2",
    "warmup.lr=1e-3",
    "warmup.demonstrations_per_step=4",
    "warmup.target_entropy_batches=1",
    "data.prompts_per_step=4",
    "data.samples_per_prompt=4",
    "data.demonstrations_per_step=4",
    "data.max_prompt_tokens=8",
    "data.max_demonstration_tokens=12",
    "rollout.max_new_tokens=8",
    "validation.prompts=4",
    "validation.final_prompts=4",
    "validation.every=0",
    "trainer.max_steps=5",
    "trainer.peak_tflops=1",
    "trainer.save_rollouts=0",
    "reward.workers=1",
    "checkpoint.export_hf=false",
)
"""The quickstart at the size of a test, for any method."""


def run_all(configs: dict[str, Config], folder: Path) -> dict[str, list[Record]]:
    """Warm-up and all steps of each method; rank 0 returns the records of each."""
    first = next(iter(configs.values()))
    place = groups.initialize(first.model, first.trainer.seed)
    hub = load_model(first, folder, place)
    found = {}
    for name, config in configs.items():
        chat = ChatTemplate(hub.tokenizer, config.data.max_demonstration_tokens)
        task = config.task.build(config.data, config.trainer.seed)
        parts = build_parts(config, folder / name, place, [], hub, task, chat, load_data(config, task, chat))
        trainer = Trainer(parts)
        for _ in warm_up(trainer):
            pass
        after_warm_up(trainer)
        for _ in warm_up_critic(trainer):
            pass
        trainer.validate_if_due()
        for _ in trainer.train():
            pass
        close(parts)
        if place.is_main:
            found[name] = read_metrics(folder / name)
    return found


class Killed(Exception):
    """What a process that is killed does not live to see."""


class StopRequests:
    """Asks to stop, or kills, at the n-th step boundary (counted from 1); never where `at` is 0."""

    def __init__(self, at: int = 0, kill: bool = False):
        self.left, self.kill = at, kill

    def agreed(self) -> str | None:
        self.left -= 1
        if self.left == 0 and self.kill:
            raise Killed
        return "the test says so" if self.left == 0 else None


def run_once(config: Config, folder: Path, stop: StopRequests) -> bool:
    """One process of a run that may have been begun by others. Returns whether it is finished; None where it was killed."""
    place = groups.initialize(config.model, config.trainer.seed)
    hub = load_model(config, folder, place)
    chat = ChatTemplate(hub.tokenizer, config.data.max_demonstration_tokens)
    task = config.task.build(config.data, config.trainer.seed)
    parts = build_parts(config, folder, place, [], hub, task, chat, load_data(config, task, chat), stop.agreed)
    try:
        return Run(Trainer(parts), hub, {}, time.monotonic()).complete()
    except Killed:
        return False
    finally:
        close(parts)
