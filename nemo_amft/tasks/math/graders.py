"""All graders behind one verifier, so that one pool of processes serves every benchmark."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from nemo_amft.tasks.math.choice import ChoiceVerifier
from nemo_amft.tasks.math.oat import OatVerifier
from nemo_amft.tasks.math.verifier import MathVerifier
from nemo_amft.types import Verdict

if TYPE_CHECKING:
    from nemo_amft.tasks.base import Verifier

_MARK = "\x1f"


def for_grader(grader: str, answer: str) -> str:
    """`answer` with the name of who is to grade it: "math_verify", "oat" or "choice"."""
    return f"{grader}{_MARK}{answer}"


@dataclass(frozen=True)
class BenchmarkVerifier:
    """Grades by the grader that the answer names (`for_grader`)."""

    thinking: bool
    """As MathVerifier's."""

    def __post_init__(self) -> None:
        # Pickled with this one, so that each readies itself while a child starts.
        verifiers = {"math_verify": MathVerifier, "oat": OatVerifier, "choice": ChoiceVerifier}
        object.__setattr__(self, "_graders", {name: verifier(self.thinking) for name, verifier in verifiers.items()})

    def __call__(self, answer: str, response: str, finished: bool) -> Verdict:
        """See Verifier."""
        grader, _, gold = answer.partition(_MARK)
        return self._graders[grader](gold, response, finished)


@dataclass(frozen=True)
class TaskOrBenchmark:
    """Grades a training task's answers by the task's own verifier, and those of benchmarks by the grader that they name."""

    task: Verifier
    benchmarks: BenchmarkVerifier

    def __call__(self, answer: str, response: str, finished: bool) -> Verdict:
        """See Verifier."""
        return (self.benchmarks if _MARK in answer else self.task)(answer, response, finished)
