"""All graders behind one verifier, so that one pool of processes serves every benchmark."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from nemo_amft.data.golds import split_grader
from nemo_amft.tasks.math.choice import ChoiceVerifier
from nemo_amft.tasks.math.oat import OatVerifier
from nemo_amft.tasks.math.verifier import MathVerifier
from nemo_amft.types import Verdict

if TYPE_CHECKING:
    from nemo_amft.tasks.base import Verifier


@dataclass(frozen=True)
class BenchmarkVerifier:
    """Grades by the grader that the answer names (data/golds.py, `for_grader`)."""

    thinking: bool
    """As MathVerifier's."""

    def __post_init__(self) -> None:
        # Pickled with this one, so that each readies itself while a child starts.
        verifiers = {"math_verify": MathVerifier, "oat": OatVerifier, "choice": ChoiceVerifier}
        object.__setattr__(self, "_graders", {name: verifier(self.thinking) for name, verifier in verifiers.items()})

    def __call__(self, answer: str, response: str, finished: bool) -> Verdict:
        """See Verifier."""
        grader, gold = split_grader(answer)
        return self._graders[grader](gold, response, finished)


@dataclass(frozen=True)
class TaskOrBenchmark:
    """Grades a training task's answers by the task's own verifier, and those of benchmarks by the grader that they name."""

    task: Verifier
    benchmarks: BenchmarkVerifier

    def __call__(self, answer: str, response: str, finished: bool) -> Verdict:
        """See Verifier."""
        return (self.benchmarks if split_grader(answer)[0] else self.task)(answer, response, finished)
