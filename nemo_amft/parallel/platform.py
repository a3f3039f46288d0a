"""Everything that differs between a CPU and a GPU, in one file.

Megatron-Core addresses its device as "cuda" in many places. On a machine without one, `install()` puts stand-ins in their place
and `megatron()` is the context under which Megatron code must run: it sends every request for a "cuda" device to the CPU. The
context costs a Python call for each torch function, so decoding and plain tensor code stay outside it.

The patches here are for megatron-core 0.16.1; each says why it is needed.
"""

from __future__ import annotations

import contextlib
import functools
import os
import queue
import threading
from collections.abc import Iterator

import torch
from torch.overrides import TorchFunctionMode

CPU = torch.device("cpu")


def is_gpu() -> bool:
    """True where this process drives a CUDA device."""
    return torch.cuda.is_available()


def device() -> torch.device:
    """The device this rank computes on."""
    return torch.device("cuda", torch.cuda.current_device()) if is_gpu() else CPU


def distributed_backend() -> str:
    """The torch.distributed backend string: NCCL for device tensors and gloo for host tensors, or gloo alone."""
    return "cuda:nccl,cpu:gloo" if is_gpu() else "gloo"


def set_device(local_rank: int) -> None:
    """Bind this process to its GPU; on a CPU, keep to the threads that OMP_NUM_THREADS grants."""
    if is_gpu():
        torch.cuda.set_device(local_rank % torch.cuda.device_count())  # one where Slurm shows each task its own GPU only
    else:
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))


def synchronize() -> None:
    """Wait for the device, so that a timer read next is honest."""
    if is_gpu():
        torch.cuda.synchronize()


def peak_memory_bytes() -> int:
    """Peak bytes in use by this process: allocator peak on a GPU, peak resident set on a CPU."""
    if is_gpu():
        return torch.cuda.max_memory_allocated()
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def get_rng_state() -> torch.Tensor:
    """State of the device's default generator."""
    return torch.cuda.get_rng_state() if is_gpu() else torch.get_rng_state()


def set_rng_state(state: torch.Tensor) -> None:
    """Restore what `get_rng_state` returned."""
    if is_gpu():
        torch.cuda.set_rng_state(state)
    else:
        torch.set_rng_state(state)


def _names_cuda(value: object) -> bool:
    if isinstance(value, torch.device):
        return value.type == "cuda"
    return isinstance(value, str) and value.startswith("cuda")


class _CudaMeansCpu(TorchFunctionMode):
    """Serves every torch call that asks for a CUDA device from the CPU."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.Tensor.cuda:
            return args[0]
        if func is torch.Tensor.type and len(args) == 1:
            # Megatron's optimisers sort parameters by type strings such as "torch.cuda.FloatTensor".
            return func(*args).replace("torch.", "torch.cuda.")
        if _names_cuda(kwargs.get("device")):
            kwargs["device"] = CPU
        if func is torch.Tensor.to and len(args) > 1 and _names_cuda(args[1]):
            args = (args[0], CPU, *args[2:])
        return func(*args, **kwargs)


_active = threading.local()


@contextlib.contextmanager
def megatron() -> Iterator[None]:
    """Context for Megatron code. Re-entrant; nothing at all on a GPU."""
    if is_gpu() or getattr(_active, "on", False):
        yield
        return
    _active.on = True
    try:
        with _CudaMeansCpu():
            yield
    finally:
        _active.on = False


@contextlib.contextmanager
def outside_megatron() -> Iterator[None]:
    """Context that lifts `megatron()` for plain tensor code called from within it (a chunked loss, a decode loop)."""
    if is_gpu() or not getattr(_active, "on", False):
        yield
        return
    with torch._C.DisableTorchFunction():
        yield


class _Stream:
    """Stands in for torch.cuda.Stream and Event: work on a CPU is already in order."""

    cuda_stream = 0

    def __init__(self, *args, **kwargs):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        return None

    def __getattr__(self, name):
        return lambda *args, **kwargs: _Stream()


@functools.cache
def install() -> None:
    """Patch what Megatron-Core needs before it is first used. Call once a process; safe to call again."""
    from nemo_amft.parallel import distributed_optimizer

    distributed_optimizer.install()
    _save_without_a_server()
    if is_gpu():
        return
    torch.cuda.current_device = lambda: CPU
    torch.cuda.get_rng_state = lambda device=None: torch.get_rng_state()
    torch.cuda.set_rng_state = lambda state, device=None: torch.set_rng_state(state)
    torch.cuda.manual_seed = torch.manual_seed
    torch.cuda.synchronize = lambda *args, **kwargs: None
    torch.cuda.nvtx.range_push = lambda *args, **kwargs: None
    torch.cuda.nvtx.range_pop = lambda *args, **kwargs: None
    torch.cuda.Stream = torch.cuda.Event = _Stream
    torch.cuda.current_stream = torch.cuda.default_stream = lambda *args, **kwargs: _Stream()
    torch.cuda.stream = lambda stream: _Stream()

    import megatron.core.tensor_parallel.random as tp_random

    tp_random._set_cuda_rng_state = lambda state, device=-1, graph_safe=False: torch.set_rng_state(state)
    tp_random._get_cuda_rng_state = lambda device=-1, clone=False, graph_safe=False: torch.get_rng_state()

    import megatron.core.transformer.moe.moe_utils as moe_utils

    if not hasattr(moe_utils, "te_general_gemm"):  # named at import time by other modules even where TE is absent
        moe_utils.te_general_gemm = None


def _save_without_a_server() -> None:
    """Have a checkpoint's writer hand over its results within the process.

    For the sake of asynchronous saves, which are not used here, they go by way of a server process that the first save starts.
    It outlives a rank that dies and holds on to its output, so that srun waits for a minute before it ends the job.
    """
    from megatron.core.dist_checkpointing.strategies import filesystem_async

    filesystem_async._results_queue = queue.SimpleQueue()
