"""The mathematics task: problems and demonstrations from data.train, data.validation and data.test."""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from nemo_amft.config.schema import DataConfig, Mixture
from nemo_amft.data.mixture import load_mixture
from nemo_amft.data.splits import hold_out, overlap, refuse_overlap
from nemo_amft.tasks.base import Split, Verifier
from nemo_amft.tasks.math.oat import OatVerifier
from nemo_amft.tasks.math.verifier import MathVerifier
from nemo_amft.types import Example, UserError

logger = logging.getLogger(__name__)

Messages = tuple[Mapping[str, str], ...]


@dataclass(frozen=True)
class MathConfig:
    thinking: bool = True
    """Responses think first, and what follows "</think>" is graded. "<think>" is the chat template's, where that ends a prompt
    with it, or else the response's own; demonstrations are made to fit."""
    system_prompt: str | None = None
    """Replaces the data's system message; "" removes it. None: as in the data."""
    grader: Literal["math_verify", "oat"] = "math_verify"
    """math_verify: free text. oat: the last box alone, by text, by value or by Math-Verify."""


def with_system_prompt(messages: Messages, system_prompt: str | None) -> Messages:
    """`messages` with their system message replaced; "" removes it, None leaves them as they are."""
    if system_prompt is None:
        return messages
    system = ({"role": "system", "content": system_prompt},) if system_prompt else ()
    return system + tuple(message for message in messages if message["role"] != "system")


class MathTask:
    """Problems in any schema that data.sources knows; reward 1 or 0 from Math-Verify, or from the grader of reports.

    Without data.validation, data.validation_size problems are held out of data.train by problem text. Without data.test the
    final evaluation uses D_val.
    """

    Config: ClassVar[type[MathConfig]] = MathConfig

    def __init__(self, config: MathConfig, data: DataConfig, seed: int) -> None:
        """Raises UserError if data.train is not set."""
        if data.train is None:
            raise UserError("data.train: found null, expected a source of problems (or, to evaluate, benchmarks.NAME=SOURCE)")
        self.config = config
        self.data = data
        self.seed = seed

    def examples(self, split: Split) -> list[Example]:
        """All splits are read and checked against each other on first use; raises UserError (data.sources, data.splits)."""
        return self._splits[split]

    def verifier(self) -> Verifier:
        """The grader; to be called through a RewardPool only."""
        return {"math_verify": MathVerifier, "oat": OatVerifier}[self.config.grader](self.config.thinking)

    @functools.cached_property
    def _splits(self) -> dict[Split, list[Example]]:
        train = self._load("train", self.data.train)
        test = self._load("test", self.data.test) if self.data.test is not None else None
        if self.data.validation is not None:
            validation = self._load("validation", self.data.validation)
            refuse_overlap("data.validation", validation, "data.train", train)
            if test is not None:
                refuse_overlap("data.validation", validation, "data.test", test)
        else:
            train, validation = hold_out(train, self.data.validation_size, self.seed, avoid=test or ())
        if test is not None and (shared := overlap(test, train)):
            # The user may want it (evaluation on training problems), so it is said and not refused.
            found, seen = shared[0]
            logger.warning("data.test: %d problems are also in data.train (first: %s = %s)", len(shared), found.id, seen.id)
        return {"train": train, "validation": validation, "test": validation if test is None else test}

    def prompted(self, example: Example) -> Example:
        """The example with the system message of task.system_prompt."""
        return replace(example, messages=with_system_prompt(example.messages, self.config.system_prompt))

    def _load(self, split: Split, sources: Mixture) -> list[Example]:
        # Only demonstrations of the training problems are ever trained on, and of these only where there are no others.
        shown = split == "train" and self.data.demonstrations is None
        return [self.prompted(example) for example in load_mixture(sources, split, demonstrations=shown)]
