"""The matrix-product peak of the device a process drives: what model FLOPs utilisation is measured against."""

from __future__ import annotations

import time

import torch
import torch.distributed as dist

from nemo_amft.parallel import platform
from nemo_amft.planning.hardware import peak_flops

SIZE = 1024
"""Rows and columns of the measured product on a CPU: large enough to be bound by arithmetic, some 30 ms a core."""
SIZE_GPU = 8192


def device_peak(precision: str, given_tflops: float | None) -> float:
    """FLOP/s of one process's device at trainer.precision, the same on every rank.

    A number the user gave; else the data sheet's of a known GPU; else the mean over ranks of a measurement that all make at the
    same time, as cores that share caches and clocks are slower together. Every rank calls it.
    """
    if given_tflops is not None:
        return 1e12 * given_tflops
    if platform.is_gpu() and (known := peak_flops(torch.cuda.get_device_name(), precision)) is not None:
        return known
    if dist.is_initialized():
        dist.barrier()
    measured = torch.tensor(measured_peak(torch.bfloat16 if precision == "bf16" else torch.float32), dtype=torch.float64)
    if dist.is_initialized():
        measured = measured.to(platform.device())
        dist.all_reduce(measured)
        measured /= dist.get_world_size()
    return float(measured)


def measured_peak(dtype: torch.dtype, rounds: int = 8) -> float:
    """FLOP/s of the fastest of some products of large square matrices."""
    size = SIZE_GPU if platform.is_gpu() else SIZE
    generator = torch.Generator(platform.device()).manual_seed(0)  # leaves the run's own random numbers alone
    a = torch.randn(size, size, generator=generator, device=platform.device()).to(dtype)
    product = torch.empty_like(a)
    fastest = float("inf")
    for _ in range(rounds + 1):  # the first allocates and picks its kernel
        platform.synchronize()
        started = time.perf_counter()
        torch.mm(a, a, out=product)
        platform.synchronize()
        fastest = min(fastest, time.perf_counter() - started)
    return 2 * size**3 / fastest
