"""Benchmark problems that the training data has too."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from nemo_amft.config.schema import DataConfig
from nemo_amft.data.mixture import load_mixture, places_of
from nemo_amft.data.places import is_local
from nemo_amft.data.splits import overlap
from nemo_amft.evaluation.problems import ProblemSet

logger = logging.getLogger(__name__)


def leaked(data: DataConfig, sets: Mapping[str, ProblemSet], when: str) -> dict[str, list[str]] | None:
    """Ids of the problems of each benchmark whose text is in data.train or data.demonstrations, as data.splits compares texts:
    cases, spaces and punctuation aside. A number changed or a sentence reworded goes unnoticed.

    None where nobody looked: no training data, or `when` ("files", "always", "never") says not to. Found ones are logged as a
    warning and left in.
    """
    places = [*places_of(data.train), *places_of(data.demonstrations)]
    if not places or when == "never" or (when == "files" and not all(map(is_local, places))):
        return None
    problems = load_mixture(data.train, "train", demonstrations=False)
    problems += load_mixture(data.demonstrations, "train", "demonstration")
    found = {name: [mine.id for mine, _ in overlap(one.examples, problems)] for name, one in sets.items()}
    for name, ids in found.items():
        if ids:
            logger.warning("benchmarks.%s: %d of its problems are in the training data (first: %s)", name, len(ids), ids[0])
    return found
