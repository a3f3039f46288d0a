"""From the `benchmarks` of a configuration to the problems that are put to the model."""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from nemo_amft.config import typed
from nemo_amft.data.sources import load_examples
from nemo_amft.data.splits import problem_text
from nemo_amft.evaluation.config import EvaluationConfig
from nemo_amft.evaluation.registry import BENCHMARKS
from nemo_amft.tasks.math.task import MathConfig, with_system_prompt
from nemo_amft.types import Example, UserError

logger = logging.getLogger(__name__)

HUB = "hub"
"""As a source: the benchmark's own place on the hub."""


@dataclass(frozen=True)
class ProblemSet:
    """One benchmark, ready to be drawn."""

    name: str
    title: str
    group: str
    examples: list[Example]
    """With ids "name/number", counted from 0 in the order of the source."""
    keys: list[str]
    """Of the examples (see `keys`)."""
    samples: int
    graders: tuple[str, ...]
    """The first one's verdicts are the scores."""


def wanted(benchmarks: Mapping[str, str | None]) -> dict[str, str]:
    """Name -> source of the benchmarks that are switched on. Raises UserError for a name that cannot be found."""
    for name, source in benchmarks.items():
        if not re.fullmatch(r"[\w.-]+", name):
            raise UserError(f"benchmarks: found the name {name!r}, expected letters, digits, '_', '.' or '-'")
        if source == HUB and name not in BENCHMARKS:
            near = typed.nearest(name, BENCHMARKS)[0]
            raise UserError(f"benchmarks.{name}: not known; did you mean {near}? (a set of your own needs a file or a hub id)")
    return {name: source for name, source in benchmarks.items() if source is not None}


def load_benchmarks(
    benchmarks: Mapping[str, str | None], evaluation: EvaluationConfig, task: MathConfig
) -> dict[str, ProblemSet]:
    """The problems of every benchmark, in the order given. Raises UserError for data that cannot be used."""
    return {name: load_benchmark(name, source, evaluation, task) for name, source in wanted(benchmarks).items()}


def load_benchmark(name: str, source: str, evaluation: EvaluationConfig, task: MathConfig) -> ProblemSet:
    """One benchmark: from the hub where `source` is "hub", else from that source.

    Every row is a problem, repeated ones too: published sets hold some, and are scored with them.
    """
    known = BENCHMARKS.get(name)
    where, split = (known.hub, known.split) if known is not None and source == HUB else (source, "test")
    found = load_examples(where, split, unique=False, demonstrations=False)
    if known is not None and len(found) != known.problems:
        logger.warning("benchmarks.%s: %d problems; the published set has %d", name, len(found), known.problems)
    if task.system_prompt is None and not any(m["role"] == "system" for m in found[0].messages):
        logger.warning("benchmarks.%s: no system message in the data and task.system_prompt is null: bare problems", name)
    choice = known.choice if known is not None else bool(found[0].metadata["choice"])
    examples = [
        replace(example, id=f"{name}/{number}", messages=with_system_prompt(example.messages, task.system_prompt))
        for number, example in enumerate(found[: evaluation.max_problems])
    ]
    return ProblemSet(
        name=name,
        title=known.title if known else name,
        group=known.group if known else "",
        examples=examples,
        keys=keys(examples),
        samples=evaluation.samples or (known.samples if known else 1),
        graders=("choice",) if choice else evaluation.graders,
    )


def problem_hash(example: Example) -> str:
    """What makes two problems one: the text without the system message, and the gold answer. 16 hexadecimal digits."""
    text = f"{problem_text(example)}\0{example.answer}"
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def keys(examples: Sequence[Example]) -> list[str]:
    """A name for each problem that is the same wherever it is read from; a repeated one gets its number behind it."""
    counts: dict[str, int] = {}
    found = []
    for example in examples:
        name = problem_hash(example)
        counts[name] = counts.get(name, 0) + 1
        found.append(name if counts[name] == 1 else f"{name}-{counts[name]}")
    return found
