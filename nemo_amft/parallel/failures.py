"""A failure on one rank ends the job on all, and its error is shown once.

When a rank dies the others fail too, each with an error of its own about a lost connection, and would bury the one that
matters. So the first rank to fail claims a file in the run directory, which all ranks see, and speaks; the others keep quiet.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path

from nemo_amft.types import UserError

FILE_NAME = "failure.txt"
GRACE_S = 10.0
"""How long a rank that failed in consequence waits for the launcher to end it, which lets the first one's words come first."""


def forget(run_dir: Path) -> None:
    """Remove what an earlier job left. Rank 0 calls this before the ranks first meet."""
    (run_dir / FILE_NAME).unlink(missing_ok=True)


@contextlib.contextmanager
def shown_once(run_dir: Path, rank: int) -> Iterator[None]:
    """Context of everything that happens between the ranks' first meeting and their parting.

    A UserError leaves as exit status 2 with its one line, any other exception as status 1 with the traceback; both are also
    written to failure.txt. The process ends at once: clean-up that waits for other ranks could hang for ever.
    """
    try:
        yield
    except Exception as error:
        mine = _claim(run_dir / FILE_NAME, _words(error, rank))
        if mine is not None:
            print(mine, file=sys.stderr, flush=True)
        else:
            time.sleep(GRACE_S)
        sys.stdout.flush()
        os._exit(2 if isinstance(error, UserError) else 1)


def _words(error: Exception, rank: int) -> str:
    if isinstance(error, UserError):
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
