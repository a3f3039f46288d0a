"""A failure on one rank ends the job on all, and its error is shown once.

When a rank dies the others fail too, each with an error of its own about a lost connection, and would bury the one that
matters. So the first rank to fail claims a file in the run directory, which all ranks see, and speaks; the others keep quiet.
The launcher then ends them by SIGTERM, which they take for what it is because that file is there.

A hang is another matter: it takes all ranks' stacks to see who waits for whom, so each prints its own.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

from nemo_amft.parallel import run_lock, signals
from nemo_amft.types import RunError, UserError

FILE_NAME = "failure.txt"
GRACE_S = 10.0
"""How long a rank that failed in consequence waits for the launcher to end it, which lets the first one's words come first."""
_HUNG = "nemo_amft: hung: "
_job: list[tuple[Path, int]] = []
"""Run directory and rank, once `shown_once` has begun."""


def forget(run_dir: Path) -> None:
    """Remove what an earlier job left. Rank 0 calls this before the ranks first meet."""
    (run_dir / FILE_NAME).unlink(missing_ok=True)


@contextlib.contextmanager
def shown_once(run_dir: Path, rank: int) -> Iterator[None]:
    """Context of everything that happens between the ranks' first meeting and their parting.

    A UserError leaves as exit status 2 with its one line, a RunError as status 1 with its own, any other exception as status 1
    with the traceback; all are also written to failure.txt. The process ends at once: clean-up that waits for other ranks could
    hang for ever.
    """
    _job[:] = [(run_dir, rank)]
    signals.when_terminated(_end_after_failure)
    try:
        yield
    except Exception as error:
        mine = _claim(run_dir / FILE_NAME, _words(error, rank))
        if mine is not None:
            print(mine, file=sys.stderr, flush=True)
        else:
            time.sleep(GRACE_S)
        run_lock.release()
        sys.stdout.flush()
        os._exit(2 if isinstance(error, UserError) else 1)


def end_hung(phase: str, limit_s: float) -> NoReturn:
    """End this process with status 1 because `phase` has lasted longer than `limit_s` seconds, with every thread's stack.
    The other ranks print theirs when the launcher comes to end them."""
    run_dir, rank = _job[0] if _job else (None, 0)
    text = f"{_HUNG}rank {rank}: {phase} has lasted longer than {limit_s:g} s"
    if run_dir is None or _claim(run_dir / FILE_NAME, text) is not None:
        print(text, file=sys.stderr, flush=True)
    _leave_with_stacks(rank)


def _end_after_failure() -> None:
    """At SIGTERM: end at once if another rank has failed. Otherwise it is a request to save and stop."""
    run_dir, rank = _job[0]
    try:
        text = (run_dir / FILE_NAME).read_text(encoding="utf-8")
    except OSError:
        return
    if text.startswith(_HUNG):
        _leave_with_stacks(rank)
    os._exit(1)


def _leave_with_stacks(rank: int) -> NoReturn:
    sys.stdout.flush()
    signals.print_stacks(f"rank {rank}")
    os._exit(1)


def _words(error: Exception, rank: int) -> str:
    if isinstance(error, UserError | RunError):
        return f"nemo_amft: error: {' '.join(str(error).split())}"
    return f"nemo_amft: rank {rank} failed\n{''.join(traceback.format_exception(error))}"


def _claim(path: Path, text: str) -> str | None:
    """Write `text` and return it, if no other rank was first."""
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text + "\n")
    except FileExistsError:
        return None
    except OSError:
        return text  # better twice than never
    return text
