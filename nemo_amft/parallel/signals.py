"""Requests to stop, from a scheduler or a person, and what all ranks make of them.

Slurm announces a time limit or a preemption by SIGUSR1 or SIGTERM, perhaps on some ranks only and at any moment. `listen`
blocks these signals in every thread and has one thread wait for them: none is lost, none interrupts a collective, and one is
heard also while the main thread is stuck. The ranks agree on a request at the next step boundary (`StopRequests.agreed`); the
run then saves and leaves with `STATUS`.

    SIGUSR1, SIGTERM    save at the next step boundary and stop; SIGTERM after another rank's failure: end at once
    SIGTERM again       end at once, with the stacks of all threads: the boundary may never come, beside a rank that is dead
    SIGUSR2             print the stacks of all threads and go on
"""

from __future__ import annotations

import faulthandler
import math
import os
import re
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from typing import NoReturn

from nemo_amft.config import launcher
from nemo_amft.parallel import run_lock
from nemo_amft.types import UserError

STATUS = 75
"""Exit status of a run that stopped because it was asked to, and can be continued (EX_TEMPFAIL of sysexits.h)."""

_STOP = (signal.SIGUSR1, signal.SIGTERM)
_HEARD = (*_STOP, signal.SIGUSR2)
_STARTED = time.time()

APART_S = 5.0
"""A launcher may pass a signal on that its processes have had: two within this time are one."""

_asked = threading.Event()
_on_term: list[Callable[[], None]] = []
_terminated: list[float] = []
"""When SIGTERM came."""


def listen() -> None:
    """Start to listen. Call it first of all, from the main thread: threads and children started before would not be covered."""
    if _listening():
        return
    for number in _HEARD:
        # For threads in which a library unblocks them, as multiprocessing does with SIGTERM when it starts a process.
        signal.signal(number, lambda number, frame: _hear(number))
    _block()
    threading.Thread(target=_wait, name="signals", daemon=True).start()


def _listening() -> bool:
    return any(thread.name == "signals" for thread in threading.enumerate())


def when_terminated(action: Callable[[], None]) -> None:
    """Have `action` run at each SIGTERM, in the listening thread, before it counts as a request."""
    _on_term[:] = [action]


def _block() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, _HEARD)


def _wait() -> None:
    while True:
        _hear(signal.sigwait(_HEARD))


def _hear(number: int) -> None:
    if number == signal.SIGUSR2:
        print_stacks(f"process {os.getpid()}")
        return
    if number == signal.SIGTERM:
        for action in _on_term:
            action()
        _terminated.append(time.monotonic())
        if _terminated[-1] - _terminated[0] > APART_S:
            print_stacks(f"process {os.getpid()}, which was asked to end twice")
            os._exit(1)
    if not _asked.is_set() and launcher.rank() == 0:
        # Not by print: a handler may have interrupted one.
        os.write(2, f"nemo_amft: {signal.Signals(number).name}: stopping at the next step boundary\n".encode())
    _asked.set()


class StopRequests:
    """Whether this job has to stop, which all ranks find out together."""

    def __init__(self, max_time: str | None = None):
        """`max_time`: NeMo's exp_manager.max_time_per_run. It counts from the start of the Slurm job where there is one: what
        came before this process (containers, imports) is part of the job's time limit. Raises UserError if malformed."""
        start = float(os.environ.get("SLURM_JOB_START_TIME") or _STARTED)
        self._deadline = math.inf if max_time is None else start + seconds(max_time)

    def agreed(self) -> str | None:
        """Why all ranks stop now, or None. Collective; the answer is the same on every rank."""
        import torch
        import torch.distributed as dist

        if _listening():
            _block()
        mine = 2 if _asked.is_set() else 1 if time.time() >= self._deadline else 0
        found = torch.tensor(mine)  # in host memory on a GPU too: gloo reduces it and the device is not waited for
        dist.all_reduce(found, op=dist.ReduceOp.MAX)
        return (None, "exp_manager.max_time_per_run is over", "asked to by a signal")[int(found)]


def leave() -> NoReturn:
    """End all ranks with `STATUS` at the same moment: a launcher takes the first to end with anything but 0 for a failure, and
    kills those that are still tidying up. Collective."""
    import torch.distributed as dist

    run_lock.release()
    sys.stdout.flush()
    sys.stderr.flush()
    dist.barrier()
    os._exit(STATUS)


def seconds(text: str) -> int:
    """Seconds of a "DD:HH:MM:SS", as NeMo writes times. Raises UserError for anything else."""
    match = re.fullmatch(r"(\d+):(\d\d):(\d\d):(\d\d)", text)
    if match is None:
        raise UserError(f"exp_manager.max_time_per_run: found {text}, expected days:hours:minutes:seconds such as 00:03:45:00")
    days, hours, minutes, rest = map(int, match.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + rest


def print_stacks(title: str) -> None:
    """Write the stacks of all Python threads to stderr in one piece, so that ranks do not interleave."""
    with tempfile.TemporaryFile("w+") as file:
        faulthandler.dump_traceback(file, all_threads=True)
        file.seek(0)
        sys.stderr.write(f"--- stacks of {title}\n{file.read()}")
        sys.stderr.flush()
