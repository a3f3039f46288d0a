"""The keys under `evaluation`: how benchmarks are drawn, graded and reported."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from nemo_amft.types import UserError


@dataclass(frozen=True)
class EvaluationConfig:
    samples: int | None = None
    """Responses a problem, the k of avg@k; for each row that repeats it. None: each benchmark's own (32 on AIME and AMC, 1
    elsewhere)."""
    max_problems: int | None = None
    """The first so many problems of each benchmark. None: all."""
    temperature: float = 0.6
    """Sampling temperature; 0 is greedy."""
    top_p: float = 1.0
    """Nucleus sampling."""
    graders: tuple[Literal["oat", "math_verify"], ...] = ("oat", "math_verify")
    """Graders of free answers. Scores and intervals are the first one's; the others' means stand beside them."""
    chunk: int = 1024
    """Responses drawn between two writes to disk: what a killed run loses at most. The longest of each is waited for."""
    check_training: Literal["files", "always", "never"] = "files"
    """Look for benchmark problems in data.train and data.demonstrations. files: only where these are on this machine."""

    def __post_init__(self) -> None:
        for name in ("samples", "max_problems", "chunk"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"evaluation.{name}: found {value}, expected at least 1")
        if self.temperature < 0:
            raise UserError(f"evaluation.temperature: found {self.temperature}, expected at least 0")
        if not 0 < self.top_p <= 1:
            raise UserError(f"evaluation.top_p: found {self.top_p}, expected more than 0 and at most 1")
        if not self.graders or len(set(self.graders)) < len(self.graders):
            raise UserError(f"evaluation.graders: found {list(self.graders)}, expected one or more, each once")
