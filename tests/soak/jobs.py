"""Starts a real training run on ranks of its own, and does to them what a launcher does.

`forked` ranks come from one server process that has everything imported: the program's imports are most of what a tiny run
costs. They are torchrun's ranks in all that the program sees: its variables, a store that the launcher holds, a session of
their own, one exit status each; and this process ends the others when one fails, as torchrun does. Others are started by
torchrun itself.
"""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Sequence
from datetime import timedelta
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch.distributed as dist

RANKS = 2
PATIENCE_S = 30.0
"""torchrun's, between SIGTERM and SIGKILL of the ranks beside one that has failed."""

PRELOAD = [
    "tests.soak.warm", "torch", "nemo_amft.algorithms.run", "nemo_amft.config.load", "megatron.core.optimizer",
    "megatron.core.models.gpt.gpt_model", "transformers.models.qwen2.modeling_qwen2", "nemo.utils.exp_manager",
    "lightning.pytorch", "torch.utils.tensorboard", "matplotlib.pyplot", "nemo_amft.observe.figures",
]  # fmt: skip


class Job:
    """A run that was started."""

    def __init__(self, log: Path):
        self.log = log
        self.began = time.monotonic()
        self._sessions: set[int] = set()

    def pids(self) -> list[int]:
        """Of the ranks that live, by rank; those of a dead rank are left out."""
        raise NotImplementedError

    def statuses(self) -> list[int] | None:
        """What the ranks ended with, negative for a signal; None while one lives. To be called often: it is the launcher."""
        raise NotImplementedError

    def wait(self, seconds: float) -> list[int] | None:
        """`statuses`, waited for; None where the job has not ended within so many seconds."""
        end = time.monotonic() + seconds
        while (found := self.statuses()) is None and time.monotonic() < end:
            time.sleep(0.02)
        return found

    def send(self, number: int, ranks: Sequence[int]) -> list[int]:
        """Send a signal. Returns the ranks that it has reached."""
        reached = []
        for rank, pid in zip(self.ranks(), self.pids(), strict=True):
            if rank in ranks:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
                    reached.append(rank)
        return reached

    def ranks(self) -> list[int]:
        """The numbers of `pids`."""
        return list(range(len(self.pids())))

    def limit_files(self, size: int) -> None:
        """No rank may make a file larger than this, as on a full disk."""
        for pid in self.pids():
            with contextlib.suppress(ProcessLookupError):
                resource.prlimit(pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

    def kill(self) -> None:
        """SIGKILL for all ranks."""
        raise NotImplementedError

    def sweep(self) -> int:
        """End whatever the ranks have started and left behind; how many processes that were."""
        self.kill()
        left = [pid for pid in _processes() if _session(pid) in self._sessions]
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return len(left)

    def words(self) -> str:
        """What it has printed."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""


class ForkedJob(Job):
    """Ranks from the server."""

    def __init__(self, arguments: Sequence[str], log: Path):
        super().__init__(log)
        self._store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=600))
        context, name = _server(), uuid.uuid4().hex
        self._processes: list[BaseProcess] = [
            context.Process(target=_rank, args=(rank, self._store.port, name, list(arguments), str(log)))
            for rank in range(RANKS)
        ]
        for process in self._processes:
            process.start()
        self._failed: float | None = None
        self._sessions = {process.pid for process in self._processes if process.pid}

    def _live(self) -> list[tuple[int, BaseProcess]]:
        return [(rank, process) for rank, process in enumerate(self._processes) if process.exitcode is None]

    def pids(self) -> list[int]:
        return [process.pid or 0 for _, process in self._live()]

    def ranks(self) -> list[int]:
        return [rank for rank, _ in self._live()]

    def statuses(self) -> list[int] | None:
        live = self._live()
        codes = [process.exitcode for process in self._processes]
        if not live:
            return [code if code is not None else 0 for code in codes]
        if any(codes) and self._failed is None:
            self._failed = time.monotonic()
            self.send(signal.SIGTERM, range(RANKS))
        if self._failed is not None and time.monotonic() - self._failed > PATIENCE_S:
            self.kill()
        return None

    def kill(self) -> None:
        self.send(signal.SIGKILL, range(RANKS))


class TorchrunJob(Job):
    """torchrun's own ranks. The status is the launcher's."""

    def __init__(self, arguments: Sequence[str], log: Path):
        super().__init__(log)
        start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(RANKS)]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        with log.open("a") as output:
            self._process = subprocess.Popen(
                [*start, "-m", "nemo_amft.train", *arguments],
                stdout=output,
                stderr=output,
                env=environment,
                start_new_session=True,
            )
        self._sessions = {self._process.pid}

    def pids(self) -> list[int]:
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children")
        with contextlib.suppress(OSError):
            return [
                int(pid)
                for pid in children.read_text().split()
                if b"nemo_amft.train" in Path(f"/proc/{pid}/cmdline").read_bytes()
            ]
        return []

    def statuses(self) -> list[int] | None:
        code = self._process.poll()
        return None if code is None else [code]

    def kill(self) -> None:
        pids = self.pids()
        for pid in (self._process.pid, *pids):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def _processes() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def _session(pid: int) -> int | None:
    try:
        return os.getsid(pid)
    except ProcessLookupError:
        return None


def _server() -> multiprocessing.context.BaseContext:
    """The fork server's context. Its environment is that of the first call."""
    os.environ |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "TORCH_CPP_LOG_LEVEL": "ERROR"}
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    return context


def _rank(rank: int, port: int, run_id: str, arguments: list[str], log: str) -> None:
    """Body of one rank: `python -m nemo_amft.train` under torchrun."""
    os.setsid()
    gc.freeze()  # what the server has imported: Megatron collects garbage at each save, and would go through all of it
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for number in (1, 2):
        os.dup2(descriptor, number)
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(RANKS),
        LOCAL_WORLD_SIZE=str(RANKS),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        TORCHELASTIC_RUN_ID=run_id,
        TORCHELASTIC_RESTART_COUNT="0",
        TORCHELASTIC_USE_AGENT_STORE="True",
    )
    import torch

    from nemo_amft import train

    torch.set_num_threads(1)
    sys.argv = [train.__file__, *arguments]
    train.main()
