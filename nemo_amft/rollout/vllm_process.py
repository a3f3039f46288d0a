"""What vLLM needs of the process it runs in, and what must be put back after it has started."""

from __future__ import annotations

import contextlib
import os
import random
import secrets
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy
import torch
import torch.distributed as dist

from nemo_amft.parallel import platform
from nemo_amft.types import UserError


def set_environment() -> None:
    """Set the variables that vLLM reads. Call before vLLM is first imported; values the user has set stay."""
    wanted = {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine's scheduler runs in this process too
        "VLLM_PLUGINS": "",  # NeMo registers one that fails to import
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": "ERROR",
    }
    if not platform.is_gpu():
        wanted["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"  # the launcher and OMP_NUM_THREADS decide
        wanted["TORCHDYNAMO_DISABLE"] = "1"  # compiling small helpers makes the first batch take 3 s instead of 0.2 s
    if not _writable(_cache_home()):  # a container's home: vLLM goes on without a cache, but prints its stack for each try
        wanted["VLLM_CACHE_ROOT"] = tempfile.mkdtemp(prefix="nemo_amft-vllm-")
    for name, value in wanted.items():
        os.environ.setdefault(name, value)
    if os.environ.get("TORCHDYNAMO_DISABLE") == "1" and "torch._dynamo.config" in sys.modules:
        sys.modules["torch._dynamo.config"].disable = True  # read from the environment when it was imported


def _cache_home() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser())


def _writable(folder: Path) -> bool:
    """Whether `folder` can be written to, or made."""
    there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    return os.access(there, os.W_OK)


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Put back what importing and starting vLLM changes for the rest of the process.

    Those are the state of all random generators, environment variables not its own (LOCAL_WORLD_SIZE, LD_PRELOAD, inductor's),
    and on a CPU torch.set_num_threads, which becomes a no-op.
    """
    environment = dict(os.environ)
    set_num_threads, num_threads, dtype = torch.set_num_threads, torch.get_num_threads(), torch.get_default_dtype()
    states = random.getstate(), numpy.random.get_state(), torch.get_rng_state(), platform.get_rng_state()
    try:
        yield
    finally:
        for name in os.environ.keys() | environment.keys():
            if name.startswith("VLLM_"):
                continue
            if name in environment:
                os.environ[name] = environment[name]
            else:
                del os.environ[name]
        torch.set_num_threads = set_num_threads
        torch.set_num_threads(num_threads)
        torch.set_default_dtype(dtype)
        random.setstate(states[0])
        numpy.random.set_state(states[1])
        torch.set_rng_state(states[2])
        platform.set_rng_state(states[3])


def keep_process_groups() -> None:
    """Have vLLM take down only groups of its own when an engine ends, be it by garbage collection.

    Its in-process engine takes torch.distributed for its own and destroys the world that training lives in (vLLM 0.32).
    """
    from vllm.distributed import destroy_model_parallel
    from vllm.v1.engine import core

    core.cleanup_dist_env_and_memory = destroy_model_parallel


def name_device() -> None:
    """Have vLLM use this process's GPU. It takes LOCAL_RANK for the device's index, which is 0 for every process where Slurm
    shows each its own GPU only. Call within `undisturbed`."""
    if platform.is_gpu():
        os.environ["LOCAL_RANK"] = str(torch.cuda.current_device())


def read_responses_with(llm: Any, tokenizer: Any) -> None:
    """Have vLLM look for stop strings in what `tokenizer`, of transformers, makes of a response. Left to itself it reads the
    folder again, by another class perhaps, and so other text than graders see; there is no way to hand it one (vLLM 0.32)."""
    llm.llm_engine.output_processor.tokenizer = tokenizer


def check_head_size(head_size: int) -> None:
    """Refuse heads that vLLM's CPU attention lacks: it would find out in the first batch."""
    if platform.is_gpu():
        return
    from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend

    sizes = CPUAttentionBackend.get_supported_head_sizes()
    if head_size not in sizes:
        raise UserError(f"rollout.engine=vllm: found attention heads of {head_size}, expected one of {sizes} on a CPU")


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Have vLLM's draws follow from `seed`: the ranks of an engine draw alike, and nothing is to be saved.

    It draws from generators of the process, which training moves on too, differently on each rank: from the device's, and on a
    GPU from NumPy's (its model runner V2 makes the seed of a request that has none with it, on every rank for itself).
    """
    training = platform.get_rng_state(), numpy.random.get_state()
    platform.set_rng_state(torch.Generator(platform.device()).manual_seed(seed % 2**63).get_state())
    numpy.random.seed(seed % 2**32)
    try:
        yield
    finally:
        platform.set_rng_state(training[0])
        numpy.random.set_state(training[1])


def job_name() -> str:
    """A name for this job that no other on the machine has; the same on every rank."""
    token = torch.tensor(secrets.randbits(62))
    dist.broadcast(token, src=0)
    return f"nemo-amft-{token.item():016x}"
