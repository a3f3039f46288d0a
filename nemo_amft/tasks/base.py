"""What the trainer knows of a task: its problems and how a response is judged.

A task is one package under nemo_amft/tasks. A configuration names its class by `_target_`; the other keys of the section are
the fields of the class's `Config`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

from nemo_amft.config.schema import DataConfig
from nemo_amft.types import Example, UserError, Verdict

if TYPE_CHECKING:
    from PIL.Image import Image

Split = Literal["train", "validation", "test"]
Images = Callable[[Example], Sequence["Image"]]


class Verifier(Protocol):
    """Judges one response. A top-level function or an instance of a frozen dataclass, as it is pickled for child processes.

    Its module is imported in children that are killed and replaced at will (see rewards.py), so it must be cheap to import and
    leave torch, datasets and transformers alone.
    """

    def __call__(self, answer: str, response: str, finished: bool) -> Verdict:
        """Compare `response` (ChatTemplate.response_text) with `answer`, an Example's; not `finished` means cut by the limit.

        May run for ever, exhaust memory or raise: the pool turns that into a reward of 0 with the reason.
        """
        ...


class Environment(Protocol):
    """Judges a conversation: the verifier of a task with several turns. The same rules hold as for a `Verifier`.

    It has no state: a conversation is judged anew from all its responses at each turn, so that a child process that died,
    another node or a resumed run go on where it stood. What an episode needs (cards, a route) is in `answer`.
    """

    def __call__(self, answer: str, responses: Sequence[str], finished: bool) -> Verdict:
        """Judge `responses`, the policy's turns so far, oldest first; `finished` is the last one's.

        With `follow_up` the conversation goes on with that user message. Without, the verdict is the episode's.
        """
        ...


class Task(Protocol):
    """Problems, demonstrations and verifier of one task.

    A task with one turn has `verifier`, one with several has `environment` in its place; the prompt is `Example.messages`.
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

    # def environment(self) -> Environment, and max_turns: int, the most responses of an episode, where there are several turns.
    # Optional: generated = True, of a task that reads none of data.train, data.validation and data.test.
    # Optional: def evaluation_sets(self) -> dict[str, Sequence[Example]], problems out of distribution by name.
    # Optional: def prompted(self, example) -> Example, what the task makes of the messages of examples that it has not read
    # itself (data.demonstrations): another system message, say.
    # Optional: def images(self, example) -> Sequence[PIL.Image.Image], what the policy sees: the first comes with the prompt,
    # others with the messages whose verdict says so (Verdict.follow_up_images). All examples have some, or none has.


def prompted(task: Task, examples: Sequence[Example]) -> list[Example]:
    """Demonstrations of data.demonstrations with prompts as the task writes them; as they are where it has no say."""
    write = getattr(task, "prompted", None)
    return [write(example) for example in examples] if write is not None else list(examples)


def judge_of(task: Task) -> Verifier | Environment:
    """What judges the task's responses."""
    return task.environment() if hasattr(task, "environment") else task.verifier()


TAKEN_NAMES = frozenset({"train", "validation", "test", "warmup", "meta"})
"""Of splits and phases in metrics and rollouts/: no evaluation set may have one of them."""


def images_of(task: Task, examples: Sequence[Example]) -> Images | None:
    """What draws or reads the images of `examples`, which are the task's; None where they have none."""
    draw = getattr(task, "images", None)
    return draw if draw is not None and examples and draw(examples[0]) else None


def evaluation_sets(task: Task) -> dict[str, Sequence[Example]]:
    """The task's problems out of distribution; none where it has no such method. Raises UserError for a taken name."""
    found = task.evaluation_sets() if hasattr(task, "evaluation_sets") else {}
    for name in sorted(found.keys() & TAKEN_NAMES):
        raise UserError(f"{type(task).__name__}.evaluation_sets: found the name {name!r}, expected one that no split has")
    return {name: examples for name, examples in found.items() if examples}
