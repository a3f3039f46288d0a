"""Runs a function in a fresh process that sees the GPU, or does not: torch settles that once a process."""

from __future__ import annotations

import multiprocessing
import os
import socket
import traceback
from collections.abc import Callable
from typing import Any


def on(device: str, function: Callable[..., Any], *args: Any, timeout: float = 280) -> Any:
    """`function(*args)` on "cuda" or "cpu", as the only rank of its job. Function, arguments and result go through pickle.

    Raises:
        AssertionError: the function raised, or has not returned after `timeout` seconds.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    settings = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    settings["OMP_NUM_THREADS"] = os.environ.get("OMP_NUM_THREADS", "1")
    if device == "cpu":
        settings["CUDA_VISIBLE_DEVICES"] = ""
    process = context.Process(target=_body, args=(settings, sender, function, args))
    # The child imports torch while it unpickles the function, before its body runs: its environment has to be right by then.
    kept = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        process.start()
    finally:
        for name, value in kept.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
    sender.close()
    try:
        assert receiver.poll(timeout), f"{function.__name__} on {device}: no result after {timeout} s"
        error, result = receiver.recv()
    except EOFError:
        raise AssertionError(f"{function.__name__} on {device}: the process died") from None
    finally:
        process.kill()
        process.join()
    assert error is None, f"{function.__name__} on {device}:\n{error}"
    return result


def _body(settings: dict[str, str], sender, function: Callable[..., Any], args: tuple) -> None:
    try:
        outcome = (None, function(*args))
    except BaseException:
        outcome = (traceback.format_exc(), None)
    sender.send(outcome)
    sender.close()
