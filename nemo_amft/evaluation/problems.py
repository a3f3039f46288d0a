"""From the `benchmarks` of a configuration to the problems that are put to the model."""

from __future__ import annotations

import hashlib
import logging
import re
from collections import Counter
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
    examples: list[Example]
    """Different ones, with ids "name/number", counted from 0 in the order of the source."""
    keys: list[str]
    """`problem_hash` of each example."""
    samples: list[int]
    """Responses to each example: the more, the more rows repeat it."""
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

    Rows with one text and one gold answer are one problem, and each stands for `evaluation.samples` responses to it: sets that
    repeat every problem 32 times are published so.
    """
    known = BENCHMARKS.get(name)
    where, split = (known.hub, known.split) if known is not None and source == HUB else (source, "test")
    found = load_examples(where, split, unique=False, demonstrations=False)
    repeats = Counter(map(problem_hash, found))
    if len(repeats) < len(found):
        logger.warning(
            "benchmarks.%s: %d rows are %d problems, repeated ones with more samples", name, len(found), len(repeats)
        )
    if known is not None and known.problems not in (len(found), len(repeats)):
        logger.warning("benchmarks.%s: %d problems; the published set has %d", name, len(repeats), known.problems)
    if task.system_prompt is None and not any(m["role"] == "system" for m in found[0].messages):
        logger.warning("benchmarks.%s: no system message in the data and task.system_prompt is null: bare problems", name)
    choice = known.choice if known is not None else bool(found[0].metadata["choice"])
    examples = [
        replace(example, id=f"{name}/{number}", messages=with_system_prompt(example.messages, task.system_prompt))
        for number, example in enumerate(_distinct(found)[: evaluation.max_problems])
    ]
    keys = [problem_hash(example) for example in examples]
    each = evaluation.samples or max(1, (known.samples if known else 1) // min(repeats.values()))
    return ProblemSet(
        name=name,
        title=known.title if known else name,
        examples=examples,
        keys=keys,
        samples=[each * repeats[key] for key in keys],
        graders=("choice",) if choice else evaluation.graders,
    )


def problem_hash(example: Example) -> str:
    """What makes two problems one, wherever they are read from: the text without the system message, and the gold answer. 16
    hexadecimal digits."""
    text = f"{problem_text(example)}\0{example.answer}"
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _distinct(examples: Sequence[Example]) -> list[Example]:
    first: dict[str, Example] = {}
    for example in examples:
        first.setdefault(problem_hash(example), example)
    return list(first.values())
