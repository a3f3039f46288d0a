"""What a run can do without: TensorBoard, W&B, sampled responses for people, pictures. Their failure is warned of once a kind,
counted, and not the run's."""

from __future__ import annotations

import contextlib
import logging
from collections import Counter
from collections.abc import Iterator

log = logging.getLogger(__name__)

failures: Counter[str] = Counter()
"""How often each kind has failed in this process; summary.json has it."""


@contextlib.contextmanager
def side_output(kind: str) -> Iterator[None]:
    """Context of one attempt at it."""
    try:
        yield
    except Exception as error:
        failures[kind] += 1
        if failures[kind] == 1:
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            log.warning("%s failed (%s); the run goes on without, and this is not warned of again", kind, reason)
