"""The child process of a RewardPool: `python -m nemo_amft.tasks.reward_worker`, spoken to over stdin and stdout.

Frames are a length (4 bytes, big endian) and a body. The parent first sends one JSON frame of settings and one frame with the
pickled verifier; the child answers {"ready": true}, or {"failed": reason} and ends. From then on each JSON frame of items
[[answer, response, finished], ...] is answered by one JSON frame an item, a Verdict's fields, in order, so that the parent
knows which item is being judged and since when.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import math
import os
import pickle
import resource
import signal
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from nemo_amft.types import Verdict

HEADER = struct.Struct(">I")
MAX_DETAIL = 300
MAX_STDERR_BYTES = 16 << 20
"""What a verifier may print before its writes fail: stderr is a temporary file of the parent's."""


def frame(body: bytes) -> bytes:
    """`body` with its length in front."""
    return HEADER.pack(len(body)) + body


def main() -> None:
    """Serve until the parent closes stdin, which its death does too."""
    requests, replies = sys.stdin.buffer, _private_stdout()
    _set_signals()
    settings = json.loads(_read(requests) or b"{}")
    try:
        verifier = _load_verifier(settings, _read(requests) or b"")
    except BaseException as error:
        _reply(replies, {"failed": _describe(error)})
        return
    _set_limits(settings["memory_mb"])
    _reply(replies, {"ready": True})
    while (body := _read(requests)) is not None:
        for answer, response, finished in json.loads(body):
            # The parent kills on time; this timer is for a child whose parent has died. Its signal keeps the default action, so
            # the kernel ends the process even where C code holds the interpreter.
            signal.setitimer(signal.ITIMER_REAL, 2 * settings["timeout_s"] + 1)
            verdict = judge(verifier, answer, response, finished)
            signal.setitimer(signal.ITIMER_REAL, 0)
            _reply(replies, dataclasses.astuple(verdict))


def judge(verifier: Callable[..., Verdict], answer: str, response: str | list[str], finished: bool) -> Verdict:
    """The verifier's verdict, or "error" with what it raised, sys.exit included."""
    try:
        verdict = verifier(answer, response, finished)
        if not math.isfinite(verdict.reward):  # one of them would make the whole batch's advantages NaN
            raise ValueError(f"the reward is {verdict.reward}, expected a finite number")
        return Verdict(
            float(verdict.reward),
            bool(verdict.correct),
            verdict.status,
            str(verdict.detail)[:MAX_DETAIL],
            None if verdict.follow_up is None else str(verdict.follow_up),
            {str(name): float(value) for name, value in verdict.numbers.items()},
            int(verdict.follow_up_images),
        )
    except BaseException as error:
        return Verdict(0.0, False, "error", _describe(error))


def _private_stdout() -> BinaryIO:
    """Keep the reply pipe to ourselves: what a verifier prints goes to stderr instead of between two frames."""
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    return replies


def _set_signals() -> None:
    """Ignore what schedulers send to all processes of a job, such as a warning before its time limit: the parent decides."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())  # last: the parent blocks signals, and one may be pending


def _load_verifier(settings: dict[str, Any], pickled: bytes) -> Callable[..., Verdict]:
    """Unpickle the verifier with the parent's module search path; the bytes come from our own parent, over a private pipe.

    A plug-in given as a file (my/task.py:MyTask) is no importable module: its file is run under the name it has in the parent.
    """
    sys.path[:] = settings["sys_path"]
    name, file = settings["module"]
    if file is not None and importlib.util.find_spec(name.partition(".")[0]) is None:
        spec = importlib.util.spec_from_file_location(name, file)
        assert spec is not None, file
        assert spec.loader is not None, file
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return pickle.loads(pickled)


def _set_limits(memory_mb: int) -> None:
    """Let the address space grow by `memory_mb` MiB from what the interpreter and the verifier's libraries take already."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + memory_mb * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (MAX_STDERR_BYTES, MAX_STDERR_BYTES))


def _read(stream: BinaryIO) -> bytes | None:
    header = stream.read(HEADER.size)
    return stream.read(HEADER.unpack(header)[0]) if len(header) == HEADER.size else None


def _reply(stream: BinaryIO, value: object) -> None:
    stream.write(frame(json.dumps(value).encode()))
    stream.flush()


def _describe(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:MAX_DETAIL]


if __name__ == "__main__":
    main()
