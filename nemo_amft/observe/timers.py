"""Seconds of each phase of a step, and the watchdog that ends a job whose phase hangs."""

from __future__ import annotations

import contextlib
import faulthandler
import math
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator

from nemo_amft.parallel import failures, platform

STUCK_S = 10.0
"""Seconds after which a process whose watchdog thread gets no turn, because C code holds the interpreter, is ended from C."""


class PhaseTimers:
    """Wall-clock seconds by phase, summed over a step.

        timers = PhaseTimers(timeout_s=3600)
        with timers("validation"):
            with timers("rollout"):                 # reported as seconds/validation/rollout
                ...
        metrics |= timers.collect()

    A phase's seconds include those of the phases inside it, so the outermost ones add up to the step.

    Watchdog: a phase that lasts longer than `timeout_s` has every Python thread's stack dumped to stderr and its process ended
    with status 1. The launcher then ends the other ranks, which print their stacks too (parallel/failures.py).
    """

    def __init__(self, timeout_s: float = 0.0) -> None:
        """`timeout_s` 0 or below: no watchdog."""
        self._timeout_s = timeout_s
        self._stack: list[str] = []
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._watchdog = _Watchdog(timeout_s, lambda: failures.end_hung(f"phase {self.current}", timeout_s))

    @property
    def current(self) -> str | None:
        """Full name of the phase being run ("validation/rollout"), or None between phases."""
        return "/".join(self._stack) or None

    @contextlib.contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        """Context that runs `phase`. An exception that leaves it carries a note with the phase's full name."""
        # The outermost phase is the first to reach its deadline, so it is the only one that needs the (single) watchdog.
        watched = not self._stack and self._timeout_s > 0
        self._stack.append(phase)
        name = "/".join(self._stack)
        if watched:
            self._watchdog.watch()
        try:
            platform.synchronize()
            started = time.perf_counter()
            yield
            platform.synchronize()  # not after an exception: the device may be what failed
            self._seconds[name] += time.perf_counter() - started
        except Exception as error:
            if not any(note.startswith("in phase ") for note in getattr(error, "__notes__", ())):
                error.add_note(f"in phase {name}")
            raise
        finally:
            self._stack.pop()
            if watched:
                self._watchdog.rest()

    def per_second(self, amount: float, *phases: str) -> float:
        """`amount` over the seconds that `phases` took since the last `collect`; 0.0 if they did not run."""
        seconds = sum(self._seconds[phase] for phase in phases if phase in self._seconds)
        return amount / seconds if seconds > 0 else 0.0

    def collect(self) -> dict[str, float]:
        """{"seconds/<phase>": seconds since the last call}, and start over."""
        seconds = {f"seconds/{name}": value for name, value in self._seconds.items()}
        self._seconds.clear()
        return seconds


class _Watchdog:
    """Calls `bite` once `watch` was longer ago than `timeout_s` without a `rest`."""

    def __init__(self, timeout_s: float, bite: Callable[[], None]) -> None:
        self._timeout_s, self._bite = timeout_s, bite
        self._deadline = math.inf
        self._thread: threading.Thread | None = None

    def watch(self) -> None:
        self._deadline = time.monotonic() + self._timeout_s
        faulthandler.dump_traceback_later(self._timeout_s + STUCK_S, exit=True, file=sys.__stderr__)
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)
            self._thread.start()

    def rest(self) -> None:
        self._deadline = math.inf
        faulthandler.cancel_dump_traceback_later()

    def _run(self) -> None:
        while time.monotonic() < self._deadline:
            time.sleep(min(1.0, self._timeout_s / 4))
        self._bite()
