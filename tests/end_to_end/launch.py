"""Starts the real program under torchrun, small enough for a test."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil

SMALL = (
    "model.scratch.hidden_size=64",
    "model.scratch.intermediate_size=128",
    "model.scratch.num_hidden_layers=2",
    "model.scratch.num_attention_heads=2",
    "task.num_train=512",
    "task.num_validation=32",
    "task.num_test=32",
    # One digit to write, 0 or 1: a few seconds of warm-up earn some rewards, so that the RL term has a gradient.
    "task.worked_steps=false",
    "task.modulus=2",
    "warmup.steps=30",
    "warmup.lr=3e-3",
    "warmup.demonstrations_per_step=16",
    "warmup.target_entropy_batches=1",
    "data.prompts_per_step=4",
    "data.samples_per_prompt=4",
    "data.demonstrations_per_step=8",
    "controller.meta_every=2",
    "controller.meta_gradient.val_prompts=4",
    "controller.meta_gradient.val_samples=2",
    "validation.every=4",
    "validation.prompts=16",
    "validation.final_prompts=16",
    "trainer.max_steps=6",
    "checkpoint.every=2",
)


def command(run_dir: Path, *overrides: str, module: str = "train", ranks: int = 2) -> list[str]:
    """The quickstart at test size, on `ranks` processes."""
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    sized = [f"trainer.devices={ranks}", f"model.tensor_model_parallel_size={ranks}", *SMALL]
    return [
        *start, "-m", f"nemo_amft.{module}", "--config-name", "quickstart",
        *sized, f"exp_manager.explicit_log_dir={run_dir}", *overrides,
    ]  # fmt: skip


def start(arguments: list[str], log: Path) -> subprocess.Popen:
    """In a process group of its own, so that it can be killed whole."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    with log.open("w") as output:
        return subprocess.Popen(arguments, stdout=output, stderr=subprocess.STDOUT, env=environment, start_new_session=True)


def finish(arguments: list[str], log: Path, timeout: float = 240) -> int:
    """Run to the end and return the exit status; at the deadline kill everything and fail with the log."""
    process = start(arguments, log)
    try:
        return process.wait(timeout)
    except subprocess.TimeoutExpired:
        raise AssertionError(f"still running after {timeout} s:\n{log.read_text()}") from None
    finally:
        kill(process)


def kill(process: subprocess.Popen) -> None:
    """SIGKILL the launcher and every rank, so that no handler runs, and wait until they are gone: ranks are leaders of sessions
    of their own, and one that still lives owns the run's folder."""
    try:
        family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return
    for member in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            member.kill()
    psutil.wait_procs(family, timeout=30)
    process.wait()


def kill_when(process: subprocess.Popen, reached: Callable[[], bool], timeout: float = 240) -> None:
    """SIGKILL everything as soon as `reached()`."""
    deadline = time.monotonic() + timeout
    try:
        while not reached():
            assert process.poll() is None, "the run ended before it could be killed"
            assert time.monotonic() < deadline, "the point to kill at was not reached"
            time.sleep(0.05)
    finally:
        kill(process)
