"""Runs a function on N gloo ranks on this machine, for tests of parallel code.

    def total(offset):                                   # in an importable test module
        value = torch.tensor(dist.get_rank() + offset)
        dist.all_reduce(value)
        return value.item()

    def test_total():
        assert run_ranks(2, total, 10) == [21, 21]

Ranks are forked from one server process that has torch, megatron-core and transformers imported, so a call costs a fraction of
a second after the first. Rendezvous is a store that this process serves on a port the kernel picks: no port is guessed, and
`init_process_group("gloo")` from the environment (as under torchrun) works in a rank too.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import multiprocessing.connection
import os
import pickle
import signal
import sys
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch.distributed as dist

GRACE_S = 5.0
"""Time the other ranks get to report their own error after one has failed; most of them hang in a collective."""

_PRELOAD = [
    "torch",
    "torch.distributed",
    "megatron.core.models.gpt.gpt_model",
    "megatron.core.optimizer",
    "transformers.models.qwen2.modeling_qwen2",
    "nemo_amft.parallel.platform",
]


class RanksFailed(AssertionError):
    """At least one rank raised, died or was still running at the deadline; the message holds every rank's error."""


def run_ranks(
    n: int, function: Callable[..., Any], *args: Any, timeout: float = 120, process_group: bool = True, **kwargs: Any
) -> list[Any]:
    """Call `function(*args, **kwargs)` on `n` ranks and return their results in the order of ranks.

    `function`, its arguments and its result go through pickle: keep them small, and the function at the top of an importable
    module. With `process_group` the gloo world is up when `function` starts and taken down after it; without, only torchrun's
    environment variables are set.

    Raises:
        RanksFailed: a rank raised, died, or `timeout` seconds have passed. No rank outlives the call.
    """
    payload = pickle.dumps((function, args, kwargs))
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=timeout))
    context = _server()
    processes, pipes = [], []
    try:
        for rank in range(n):
            receiver, sender = context.Pipe(duplex=False)
            process = context.Process(target=_rank, args=(rank, n, store.port, timeout, process_group, payload, sender))
            process.start()
            sender.close()
            processes.append(process)
            pipes.append(receiver)
        outcomes = _collect(pipes, time.monotonic() + timeout)
    finally:
        for process in processes:
            _kill(process)
    failures = [f"--- rank {rank}: {error}" for rank, (error, _) in enumerate(outcomes) if error]
    if failures:
        title = f"{len(failures)} of {n} ranks failed in {function.__module__}.{function.__qualname__}"
        raise RanksFailed("\n".join([title, *failures]))
    return [result for _, result in outcomes]


def _server() -> multiprocessing.context.BaseContext:
    """The fork server's context. Its environment is that of the first call, so threads and GPUs are settled here."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOAD)
    return context


def _collect(pipes: list[multiprocessing.connection.Connection], deadline: float) -> list[tuple[str | None, Any]]:
    """(error or None, result) of every rank; stops waiting at the deadline, or shortly after the first error."""
    started = time.monotonic()
    outcomes: dict[int, tuple[str | None, Any]] = {}
    while len(outcomes) < len(pipes):
        waiting = {pipe: rank for rank, pipe in enumerate(pipes) if rank not in outcomes}
        ready = multiprocessing.connection.wait(list(waiting), max(0.0, deadline - time.monotonic()))
        if not ready:
            break
        for pipe in ready:
            try:
                outcomes[waiting[pipe]] = pickle.loads(pipe.recv_bytes())
            except EOFError:
                outcomes[waiting[pipe]] = ("died without a word (killed by a signal, or os._exit)", None)
            if outcomes[waiting[pipe]][0]:
                deadline = min(deadline, time.monotonic() + GRACE_S)
    silent = f"gave no result within {time.monotonic() - started:.0f} s"
    return [outcomes.get(rank, (silent, None)) for rank in range(len(pipes))]


def _kill(process: multiprocessing.process.BaseProcess) -> None:
    """End a rank and whatever it has started (each rank leads a process group)."""
    process.join(timeout=0.5)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    if process.is_alive():
        process.kill()
    process.join()


def _rank(rank: int, world_size: int, port: int, timeout: float, process_group: bool, payload: bytes, pipe) -> None:
    """Body of one rank."""
    os.setpgid(0, 0)
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(world_size),
        LOCAL_WORLD_SIZE=str(world_size),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        TORCHELASTIC_USE_AGENT_STORE="True",  # every rank is a client of the store, rank 0 serves none
        OMP_NUM_THREADS="1",
        CUDA_VISIBLE_DEVICES="",
    )
    try:
        import torch

        from nemo_amft.parallel import platform

        torch.set_num_threads(1)
        platform.install()
        if process_group:
            dist.init_process_group("gloo", timeout=timedelta(seconds=timeout))
        function, args, kwargs = pickle.loads(payload)
        outcome = pickle.dumps((None, function(*args, **kwargs)))
        if process_group:
            dist.destroy_process_group()
    except BaseException:
        outcome = pickle.dumps((traceback.format_exc(), None))
    sys.stdout.flush()
    sys.stderr.flush()
    pipe.send_bytes(outcome)
    pipe.close()
