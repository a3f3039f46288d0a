"""The process that the inputs are put through: `python -m tests.fuzz.worker SEED STEP SECONDS NOTE [KIND ...]`.

It says on stdout, in lines of JSON, which round it begins and what that came to. NOTE is a file that holds the input at hand.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import resource
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from typing import IO, Any

import hypothesis
import hypothesis.internal.conjecture.engine as engine
from hypothesis import HealthCheck, Phase, Verbosity

from tests.fuzz.kinds import Fault, Kind, outcome

ADDRESS_SPACE = 24 << 30
"""A number in a damaged file that is taken for a length must not take the machine down."""

NOTED = 2000
"""Bytes of an input that are shown where it ends the process."""


def kinds() -> list[Kind]:
    """All, lightest imports first."""
    from tests.fuzz import answers, command_lines, data_files, model_files, run_files

    return [kind for module in (command_lines, data_files, answers, model_files, run_files) for kind in module.KINDS]


def play(
    kind: Kind, seed: int, number: int, most: int | None = None, note: int | None = None
) -> tuple[Counter[str], dict[str, Any] | None]:
    """Round `number` of a kind: what its inputs came to, and the smallest input that is a fault, if there is one. `note`: a
    file descriptor to which each input is written beforehand."""
    counts: Counter[str] = Counter()
    worst: dict[str, Any] = {}

    def body(value: Any) -> None:
        if note is not None:
            _write_down(note, value)
        try:
            found = outcome(kind, value)
        except Fault as fault:
            worst.update(error=str(fault)[:600], example=repr(value)[:1500], traceback=_origin(fault))
            raise
        if not worst:
            counts[found] += 1

    test = hypothesis.seed(_seed(seed, kind.name, number))(
        hypothesis.settings(
            max_examples=most or kind.round, database=None, deadline=None, suppress_health_check=list(HealthCheck),
            phases=(Phase.generate, Phase.shrink), report_multiple_bugs=False, verbosity=Verbosity.quiet, print_blob=False,
        )(hypothesis.given(kind.inputs)(body))
    )  # fmt: skip
    with contextlib.suppress(Fault, BaseExceptionGroup, hypothesis.errors.HypothesisException):
        test()
    return counts, worst or None


def _write_down(note: int, value: Any) -> None:
    os.pwrite(note, repr(value).encode("utf-8", errors="backslashreplace")[:NOTED].ljust(NOTED), 0)


def _origin(fault: Fault) -> str:
    """The last lines of what was raised in the product."""
    cause = fault.__cause__
    return "" if cause is None else "".join(traceback.format_exception(cause))[-1500:]


def _seed(seed: int, kind: str, number: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}/{kind}/{number}".encode()).digest()[:8])


def main() -> None:
    seed, step, seconds, wanted = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), sys.argv[5:]
    note = os.open(sys.argv[4], os.O_WRONLY)
    say = _private_stdout()
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    warnings.simplefilter("ignore")
    logging.disable(logging.INFO)
    engine.MAX_SHRINKING_SECONDS = 30
    os.chdir(tempfile.mkdtemp(prefix="fuzz-cwd-"))  # a relative name must not find this project's files
    os.environ["HOME"] = os.getcwd()
    every = [kind for kind in kinds() if not wanted or any(word in kind.name for word in wanted)]
    end = time.monotonic() + seconds  # without the imports
    while time.monotonic() < end:
        kind = every[step % len(every)]
        _tell(say, kind=kind.name, step=step)
        counts, fault = play(kind, seed, step // len(every), note=note)
        _tell(say, kind=kind.name, step=step, counts=counts)
        if fault is not None:
            _tell(say, kind=kind.name, step=step, **fault)
        step += 1


def _private_stdout() -> IO[str]:
    """What libraries print goes to stderr instead of between two lines."""
    say = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return say


def _tell(say: IO[str], **values: Any) -> None:
    say.write(json.dumps(values) + "\n")
    say.flush()


if __name__ == "__main__":
    main()
