"""What TRL's two sides share: training arguments, and a callback that makes the trainer run a turn at a time."""

from __future__ import annotations

import importlib.metadata
import time
from collections.abc import Callable
from typing import Any

import torch
from interleave import Channel
from transformers import TrainerCallback


def common_arguments(settings: dict[str, Any]) -> dict[str, Any]:
    """Arguments of both trainers: the optimiser of the other side, fp32, and nothing that costs time without training."""
    torch.set_num_threads(settings["threads"])
    return {
        "output_dir": settings["folder"],
        "max_steps": 100_000,
        "learning_rate": settings["lr"],
        "lr_scheduler_type": "constant",
        "adam_beta1": 0.9,
        "adam_beta2": 0.95,
        "weight_decay": settings["weight_decay"],
        "max_grad_norm": 1.0,
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "dataloader_pin_memory": False,
        "ddp_find_unused_parameters": False,
        "logging_strategy": "no",
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "model_init_kwargs": {"dtype": "float32"},
    }


class Turns(TrainerCallback):
    """Waits for a turn at the end of a step, so that a turn holds all that lies between: the data of its steps, too."""

    def __init__(self, channel: Channel):
        self._channel = channel
        self._left = 0
        self._seconds: dict[str, float] = {}
        self._counts: dict[str, float] = {}
        self._count: Callable[[], dict[str, float]] = dict
        self._late: list[tuple[Any, str]] = []

    def count(self, count: Callable[[], dict[str, float]]) -> None:
        """`count` gives what a step has done on this rank."""
        self._count = count

    def watch(self, trainer: Any, path: str, phase: str) -> None:
        """Count the seconds of the trainer's method `path` to `phase`; the optimiser's is there when training begins."""
        if path.startswith("optimizer."):
            self._late.append((trainer, phase))
            return
        owner, name = trainer, path
        if "." in path:
            first, name = path.split(".")
            owner = getattr(trainer, first)
        self._wrap(owner, name, phase)

    def _wrap(self, owner: Any, name: str, phase: str) -> None:
        method = getattr(owner, name)

        def timed(*args: Any, **kwargs: Any) -> Any:
            started = time.perf_counter()
            result = method(*args, **kwargs)
            self._seconds[phase] = self._seconds.get(phase, 0.0) + time.perf_counter() - started
            return result

        setattr(owner, name, timed)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        for _, phase in self._late:
            self._wrap(kwargs["optimizer"], "step", phase)
        found = {name: importlib.metadata.version(name) for name in ("trl", "transformers", "torch")}
        self._channel.reply({}, {}, torch_threads=torch.get_num_threads(), versions=found)
        self._wait(control)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        for name, value in self._count().items():
            self._counts[name] = self._counts.get(name, 0) + value
        self._left -= 1
        if not self._left:
            self._channel.reply(self._counts, self._seconds)
            self._wait(control)

    def _wait(self, control: Any) -> None:
        self._left = self._channel.wait()
        self._seconds, self._counts = {}, {}
        control.should_training_stop = not self._left
