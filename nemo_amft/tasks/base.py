"""What the trainer knows of a task: its problems and how a response is judged.

A task is one package under nemo_amft/tasks. A configuration names its class by `_target_`; the other keys of the section are
the fields of the class's `Config`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal, Protocol

from nemo_amft.config.schema import DataConfig
from nemo_amft.types import Example, Verdict

Split = Literal["train", "validation", "test"]


class Verifier(Protocol):
    """Judges one response. A top-level function or an instance of a frozen dataclass, as it is pickled for child processes.

    Its module is imported in children that are killed and replaced at will (see rewards.py), so it must be cheap to import and
    leave torch, datasets and transformers alone.
    """

    def __call__(self, answer: str, response: str, finished: bool) -> Verdict:
        """Compare `response` (text without the stop token) with `answer`, an Example's; not `finished` means cut by the limit.

        May run for ever, exhaust memory or raise: the pool turns that into a reward of 0 with the reason.
        """
        ...


class Task(Protocol):
    """Problems, demonstrations and verifier of one task.

    Tasks here have one turn: the prompt is `Example.messages` and the reward judges the one response. A task with several turns
    (General Points, V-IRL) will add a method `environment(example)` that returns an object with `step(response) -> next user
    turn | Verdict`; the rollout loop, which owns the engine, is the one place that will have to call it.
    """

    Config: ClassVar[type[Any]]
    """Frozen dataclass with the task's keys, each documented."""

    def __init__(self, config: Any, data: DataConfig, seed: int) -> None:
        """Check the settings; raises UserError. Reading files may wait until `examples`."""
        ...

    def examples(self, split: Split) -> Sequence[Example]:
        """The problems of `split`: the same list, in the same order, on every rank and for every run with this config and seed.

        Raises UserError, with one line, for data that cannot be used.
        """
        ...

    def verifier(self) -> Verifier:
        """What judges responses; independent of the split."""
        ...
