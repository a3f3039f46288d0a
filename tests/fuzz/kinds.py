"""What a kind of input is, and what one input may come to.

The rule for each: the product's own function gives a right result, by a statement of the kind's that is worked out apart from
it, or raises UserError with one line. Anything else is a fault: another exception, a line break, a line that names neither file
nor key, an end that never comes.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from hypothesis.strategies import SearchStrategy

from nemo_amft.types import UserError

LONGEST_LINE = 2000
"""Characters of an error that somebody still reads."""

OUTCOMES = ("accepted", "refused", "timed out")


class Fault(AssertionError):
    """An input that came to something else than it may."""


class TooLong(BaseException):
    """Raised by the alarm. Not an Exception: the product turns many of these into lines of its own."""


@dataclass(frozen=True)
class Kind:
    """One kind of input."""

    name: str
    inputs: SearchStrategy[Any]
    check: Callable[[Any], str | None]
    """Puts an input through the product. None for "accepted", or another of OUTCOMES. Raises UserError where it was refused,
    and Fault or anything else where something is wrong."""
    names: Callable[[Any], Sequence[str]] = lambda value: ()
    """Texts of which a refusal has to hold one; none: any line will do."""
    deadline_s: float = 20.0
    """After so long an input counts as hung."""
    round: int = 100
    """Inputs drawn from one seed."""


def outcome(kind: Kind, value: Any) -> str:
    """What an input came to. Raises Fault."""
    try:
        with _deadline(kind.deadline_s):
            return kind.check(value) or "accepted"
    except UserError as error:
        _look_at(str(error), kind.names(value))
        return "refused"
    except Fault:
        raise
    except TooLong:
        raise Fault(f"no end within {kind.deadline_s:g} s") from None
    except (KeyboardInterrupt, GeneratorExit):
        raise
    except BaseException as error:  # panics of libraries in Rust are no Exceptions
        raise Fault(f"{type(error).__name__}: {error}") from error


def _look_at(line: str, names: Sequence[str]) -> None:
    if "\n" in line or not line.strip():
        raise Fault(f"the refusal is no line: {line!r}")
    if len(line) > LONGEST_LINE:
        raise Fault(f"the refusal has {len(line)} characters: {line[:200]}...")
    if names and not any(name in line for name in names):
        raise Fault(f"the refusal names none of {list(names)[:3]}: {line}")


@contextlib.contextmanager
def _deadline(seconds: float) -> Iterator[None]:
    def ring(number: int, frame: object) -> None:
        raise TooLong

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def expect(condition: object, message: str) -> None:
    """Raises Fault unless `condition` holds."""
    if not condition:
        raise Fault(message)
