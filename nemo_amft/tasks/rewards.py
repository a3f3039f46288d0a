"""Runs a verifier in child processes that are killed when it hangs, and replaced when it crashes.

Verifiers compute on text that a policy wrote, so sooner or later one runs for ever (9^9^9^9), in C code that no exception
reaches, or takes all memory. The children are programs of their own, started with exec: nothing of the parent's CUDA context,
sockets or threads reaches them, and starting one is safe while other threads run.
"""

from __future__ import annotations

import collections
import contextlib
import json
import math
import os
import pickle
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import nemo_amft
from nemo_amft.tasks.base import Environment, Verifier
from nemo_amft.tasks.reward_worker import HEADER, frame
from nemo_amft.types import Verdict

START_TIMEOUT_S = 120.0
"""Starting a child imports the verifier's libraries, perhaps from a shared file system that all nodes read at once."""

MAX_FAILED_STARTS = 3
"""Starts in a row that may fail before the pool gives up; a stray signal can end one."""

MAX_BATCH = 64
"""Items in one message to a child: enough to hide the pipe's latency, few enough to share out evenly."""

Item = tuple[str, str | Sequence[str], bool]
"""(answer, response, finished); for an Environment the responses so far in place of the one."""


class RewardPool:
    """`workers` child processes that judge responses: `timeout_s` seconds an item, `memory_mb` MiB each beyond its start.

    Use as a context manager, or call `close`. `score` may be called from any thread; calls wait for each other.
    """

    def __init__(self, verifier: Verifier | Environment, workers: int, timeout_s: float, memory_mb: int) -> None:
        """Start the children without waiting for them, so that their imports overlap with what the caller does next.

        Raises what pickle raises for a verifier that is no top-level function or instance.
        """
        assert min(workers, timeout_s, memory_mb) > 0, (workers, timeout_s, memory_mb)
        module = sys.modules[(verifier if hasattr(verifier, "__qualname__") else type(verifier)).__module__]
        settings = {
            "sys_path": [os.path.abspath(entry) for entry in sys.path],
            "module": (module.__name__, getattr(module, "__file__", None)),
            "timeout_s": timeout_s,
            "memory_mb": memory_mb,
        }
        self._hello = frame(json.dumps(settings).encode()) + frame(pickle.dumps(verifier))
        self._num_workers = workers
        self._timeout_s = timeout_s
        self._lock = threading.Lock()
        self._workers = [_Worker(self._hello, timeout_s) for _ in range(workers)]

    def score(self, items: Sequence[Item]) -> list[Verdict]:
        """Judge (answer, response, finished) items; verdicts come in the order of `items`.

        An item that exceeds its time gets status "timeout"; one that raises, exhausts memory or ends its process gets "error"
        with the reason; both have reward 0. Raises RuntimeError if the verifier cannot be loaded in a child.
        """
        with self._lock:
            try:
                return self._score(items)
            except BaseException:
                # Half-judged batches must not answer for the next call's items.
                self._kill_all()
                raise

    def close(self) -> None:
        """Kill the children. A later `score` would start new ones."""
        with self._lock:
            self._kill_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _score(self, items: Sequence[Item]) -> list[Verdict]:
        size = max(1, min(MAX_BATCH, math.ceil(len(items) / (4 * self._num_workers))))
        waiting = collections.deque(list(range(len(items))[start : start + size]) for start in range(0, len(items), size))
        verdicts: dict[int, Verdict] = {}
        failed_starts = 0
        while True:
            for worker in list(self._workers):
                verdicts.update(worker.receive())
                lost = worker.lost()
                if lost is None:
                    continue
                self._workers.remove(worker)
                failed_starts = 0 if worker.ready else failed_starts + 1
                if failed_starts == MAX_FAILED_STARTS:
                    raise RuntimeError(f"a reward worker did not start: {lost.detail}")
                if worker.pending:
                    # The first is the culprit; the others have not been looked at.
                    verdicts[worker.pending.popleft()] = lost
                if worker.pending:
                    waiting.appendleft(list(worker.pending))
            if len(verdicts) == len(items):
                return [verdicts[index] for index in range(len(items))]
            while len(self._workers) < self._num_workers:
                self._workers.append(_Worker(self._hello, self._timeout_s))
            for worker in self._workers:
                if waiting and worker.ready and not worker.pending:
                    worker.send(waiting.popleft(), items)
            self._wait()

    def _wait(self) -> None:
        """Sleep until a child says something, can be written to, or passes its deadline."""
        # poll and not select: this process may hold more than select's 1024 file descriptors.
        poll = select.poll()
        for worker in self._workers:
            worker.register(poll)
        remaining = min(worker.deadline for worker in self._workers) - time.monotonic()
        poll.poll(max(0, math.ceil(remaining * 1000)))
        for worker in self._workers:
            worker.flush()

    def _kill_all(self) -> None:
        while self._workers:
            self._workers.pop().kill()


class _Worker:
    """One child and the state of the conversation with it. Pipes never block: a stuck child must not stop the parent."""

    def __init__(self, hello: bytes, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115  closed in kill()
        root = str(Path(nemo_amft.__file__).resolve().parent.parent)
        self._process = subprocess.Popen(
            # -P: a file in the working directory must not take the place of a module of the standard library.
            [sys.executable, "-P", "-m", "nemo_amft.tasks.reward_worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            env={**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
            process_group=0,  # so that what a verifier starts dies with it
            bufsize=0,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._stdin, self._stdout = self._process.stdin.fileno(), self._process.stdout.fileno()
        os.set_blocking(self._stdin, False)
        os.set_blocking(self._stdout, False)
        self._outbox, self._inbox = bytearray(hello), bytearray()
        self._ended = False
        self.ready = False
        """It has loaded the verifier."""
        self.pending: collections.deque[int] = collections.deque()
        """Items sent and not answered; the first is the one it works on."""
        self.deadline = time.monotonic() + START_TIMEOUT_S
        """When to give up on it (time.monotonic); infinite while it has nothing to do."""

    def send(self, indices: Sequence[int], items: Sequence[Item]) -> None:
        """Queue a batch; its first item's time starts now."""
        self.pending.extend(indices)
        self._outbox += frame(json.dumps([items[index] for index in indices]).encode())
        self.deadline = time.monotonic() + self._timeout_s
        self.flush()

    def register(self, poll: select.poll) -> None:
        """Add what this child is waited for to `poll`."""
        poll.register(self._stdout, select.POLLIN)
        if self._outbox:
            poll.register(self._stdin, select.POLLOUT)

    def flush(self) -> None:
        """Write as much as the pipe takes."""
        try:
            while self._outbox:
                del self._outbox[: os.write(self._stdin, self._outbox)]
        except BlockingIOError:
            pass
        except BrokenPipeError:
            self._outbox.clear()  # it is dead, as the end of its replies will tell

    def receive(self) -> list[tuple[int, Verdict]]:
        """Verdicts that have arrived, by index. Each gives the item after it a new deadline."""
        with contextlib.suppress(BlockingIOError):
            while data := os.read(self._stdout, 1 << 16):
                self._inbox += data
            self._ended = True
        verdicts = []
        while (value := self._next_frame()) is not None:
            if isinstance(value, list):
                verdicts.append((self.pending.popleft(), Verdict(*value)))
            elif "failed" in value:
                raise RuntimeError(f"a reward worker could not load the verifier: {value['failed']}")
            self.ready = True
            self.deadline = time.monotonic() + self._timeout_s if self.pending else math.inf
        return verdicts

    def lost(self) -> Verdict | None:
        """None while all is well. Else the child is dead, killed if need be, and this is the verdict on its current item."""
        if self._ended:
            with contextlib.suppress(subprocess.TimeoutExpired):  # it may have closed its pipe and live on
                self._process.wait(1.0)
            verdict = Verdict(0.0, False, "error", self._cause_of_death())
        elif time.monotonic() >= self.deadline:
            verdict = Verdict(0.0, False, "timeout", f"killed after {self._timeout_s if self.ready else START_TIMEOUT_S:g} s")
        else:
            return None
        self.kill()
        return verdict

    def kill(self) -> None:
        """End the process, and what it started, whatever it is doing."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._stderr):
            with contextlib.suppress(OSError):
                stream.close()  # type: ignore[union-attr]

    def _next_frame(self) -> Any:
        if len(self._inbox) < HEADER.size:
            return None
        end = HEADER.size + HEADER.unpack_from(self._inbox)[0]
        if len(self._inbox) < end:
            return None
        value = json.loads(bytes(self._inbox[HEADER.size : end]))
        del self._inbox[:end]
        return value

    def _cause_of_death(self) -> str:
        status = self._process.returncode
        if status is None:
            cause = "the verifier's process closed its pipe"
        elif status < 0:
            cause = f"the verifier's process was ended by {signal.Signals(-status).name}"
        else:
            cause = f"the verifier's process ended with status {status}"
        self._stderr.seek(max(0, self._stderr.seek(0, os.SEEK_END) - 1000))
        lines = self._stderr.read().decode(errors="replace").strip().splitlines()
        return f"{cause}: {lines[-1][:200]}" if lines else cause
