"""Benchmark problems that the training data has too."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

from nemo_amft.data.places import is_local, sources_of
from nemo_amft.data.sources import load_examples
from nemo_amft.data.splits import overlap
from nemo_amft.evaluation.problems import ProblemSet

logger = logging.getLogger(__name__)


def leaked(train: str | Sequence[str] | None, sets: Mapping[str, ProblemSet], when: str) -> dict[str, list[str]] | None:
    """Ids of the problems of each benchmark whose text is in the training problems `train`, as data.splits compares texts:
    cases, spaces and punctuation aside. A number changed or a sentence reworded goes unnoticed.

    None where nobody looked: no training data, or `when` ("files", "always", "never") says not to. Found ones are logged as a
    warning and left in.
    """
    if train is None or when == "never":
        return None
    if when == "files" and not all(map(is_local, sources_of(train))):
        return None
    problems = load_examples(train, demonstrations=False)
    found = {name: [mine.id for mine, _ in overlap(one.examples, problems)] for name, one in sets.items()}
    for name, ids in found.items():
        if ids:
            logger.warning("benchmarks.%s: %d of its problems are in data.train (first: %s)", name, len(ids), ids[0])
    return found
