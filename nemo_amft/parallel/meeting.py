"""Where the ranks of a job first meet: the store at MASTER_ADDR:MASTER_PORT, which torch.distributed then builds on.

Left to itself torch.distributed waits for an absent rank as long as for a collective, and without a word of who is absent. Here
each rank signs in, and what is wrong is said in a line: by the rank that cannot reach the store, or, of ranks that do not come,
by rank 0.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import NoReturn

import torch.distributed as dist

from nemo_amft.types import RunError

LIMIT_S = 300.0
"""How long ranks wait for each other, unless told otherwise."""
HINT_S = 20.0
"""After this time of waiting it is said what is waited for."""
NAME_S = 10.0
"""How long a host's name may take to be known: a container's network may come up after its processes."""
_KEY = "nemo_amft/meeting/"


def meet(limit_s: float = LIMIT_S) -> dist.Store:
    """Wait until all ranks of the environment (RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT) are here. Returns their store.

    Raises RunError where the address leads nowhere, ranks do not come within `limit_s` seconds, or two disagree on who they
    are; SystemExit on a rank for which rank 0 raises it.
    """
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    place = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']} (MASTER_ADDR, MASTER_PORT)"
    if not 0 <= rank < world:
        raise RunError(f"RANK={rank}: expected less than WORLD_SIZE={world}")
    state = [f"for an answer from {place}"]
    with _hint(rank, state, limit_s):
        store = _store(rank, world, place, limit_s)
        if rank == 0:
            _gather(store, world, place, state, limit_s)
        else:
            _sign_in(store, rank, world, place, state, limit_s)
    return store


def _store(rank: int, world: int, place: str, limit_s: float) -> dist.Store:
    """As torch.distributed makes it: rank 0 serves it, unless torchrun's agent does."""
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    serves = rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    nobody = f"rank {rank}: found nobody at {place} within {limit_s:g} s, expected rank 0 there"
    _await_name(host, place, min(NAME_S, limit_s))
    if not serves and not _answers(host, port, limit_s):
        raise RunError(nobody)
    try:
        limit = timedelta(seconds=limit_s)
        return dist.TCPStore(host, port, world, serves, limit, wait_for_workers=False, multi_tenant=True)
    except dist.DistError as error:
        if "EADDRINUSE" in str(error):
            raise RunError(f"{place}: found the port in use by another program, expected one that is free") from error
        raise RunError(nobody) from error


def _await_name(host: str, place: str, limit_s: float) -> None:
    deadline = time.monotonic() + limit_s
    while True:
        try:
            socket.getaddrinfo(host, None)
            return
        except OSError as error:
            if time.monotonic() > deadline:
                reason = error.strerror or str(error)
                raise RunError(f"{place}: the host is not known on {socket.gethostname()}: {reason}") from error
        time.sleep(0.5)


def _answers(host: str, port: int, limit_s: float) -> bool:
    """Wait until something listens there: torch's own client, where nothing ever does, ends with pages of its stack."""
    deadline = time.monotonic() + limit_s
    while (left := deadline - time.monotonic()) > 0:
        try:
            socket.create_connection((host, port), max(1.0, left)).close()
            return True
        except OSError:
            time.sleep(0.2)
    return False


def _gather(store: dist.Store, world: int, place: str, state: list[str], limit_s: float) -> None:
    """Rank 0: wait for the others, and let them go on."""
    deadline = time.monotonic() + limit_s
    _sign(store, 0, world)
    found = f"{place}: found"
    expected = f"expected one process for each of {world} ranks (WORLD_SIZE={world})"
    while (here := store.add(_KEY + "here", 0)) < world:
        state[0] = f"for {world - here} of {world} ranks to come to {place}"
        if time.monotonic() > deadline:
            absent = [rank for rank in range(world) if not store.check([f"{_KEY}{rank}"])]
            some = ", ".join(map(str, absent[:8])) + ", ..." * (len(absent) > 8)
            _give_up(store, f"{found} {here} of {world} ranks within {limit_s:g} s, {expected}; absent: {some}")
        time.sleep(0.05)
    sizes = {rank: int(store.get(f"{_KEY}{rank}")) for rank in range(world) if store.check([f"{_KEY}{rank}"])}
    for rank, size in sizes.items():
        if size != world:
            _give_up(store, f"{found} rank {rank} with WORLD_SIZE={size}, {expected}")
    if here > world or len(sizes) < world:
        _give_up(store, f"{found} {here} processes with {len(sizes)} RANKs, {expected}")
    store.set(_KEY + "go", "")


def _give_up(store: dist.Store, text: str) -> NoReturn:
    """Raise `text` here alone."""
    store.set(_KEY + "go", text)
    time.sleep(0.5)  # this process may serve the store, and the others are to hear it
    raise RunError(text)


def _sign_in(store: dist.Store, rank: int, world: int, place: str, state: list[str], limit_s: float) -> None:
    """Any other rank: say that it is here, and wait for rank 0's word, which also speaks for it."""
    _sign(store, rank, world)
    state[0] = f"for rank 0's word at {place}"
    try:
        store.wait([_KEY + "go"], timedelta(seconds=limit_s + NAME_S))
        fault = store.get(_KEY + "go")
    except dist.DistError as error:
        raise RunError(f"rank {rank}: found no word from rank 0 at {place}, expected that all ranks are there") from error
    if fault:
        sys.exit(1)


def _sign(store: dist.Store, rank: int, world: int) -> None:
    store.set(f"{_KEY}{rank}", str(world))
    store.add(_KEY + "here", 1)


@contextmanager
def _hint(rank: int, state: list[str], limit_s: float) -> Iterator[None]:
    """Say on rank 0, and the first rank of any other node, what is waited for, if that takes long."""

    def say() -> None:
        if rank == 0 or os.environ.get("LOCAL_RANK", "0") == "0":
            print(f"nemo_amft: rank {rank} waits {state[0]}, for up to {limit_s:g} s", file=sys.stderr, flush=True)

    timer = threading.Timer(HINT_S, say)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
