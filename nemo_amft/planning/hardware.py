"""Peaks of the GPUs one plans for, from NVIDIA's data sheets. No torch: a plan needs no GPU.

Rates are dense (the sheets also print twice as much, for matrices of which half is zero). fp32 is that of the vector units, not
TF32: torch multiplies fp32 matrices in fp32 unless told otherwise, and nothing here tells it otherwise.
"""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class GPU:
    """One GPU of a node with eight."""

    name: str
    bf16_tflops: float
    """Dense bf16 with fp32 accumulation, TFLOP/s."""
    fp32_tflops: float
    """fp32 on the vector units, TFLOP/s."""
    memory_gib: float
    """What CUDA reports as total: a little less than the sheet's number."""
    memory_gbs: float
    """Memory bandwidth, GB/s."""
    link_gbs: float
    """To the other GPUs of the node, GB/s one way (the sheets add both directions)."""
    network_gbs: float
    """To other nodes, GB/s one way: one adapter a GPU, as NVIDIA's own eight-GPU systems have them."""
    host_gbs: float
    """To host memory, GB/s one way (PCI Express x16)."""

    def peak_flops(self, precision: str) -> float:
        """FLOP/s of matrix products at trainer.precision, "bf16" or "32"."""
        return 1e12 * (self.bf16_tflops if precision == "bf16" else self.fp32_tflops)


GPUS = {
    # A100 data sheet (NVIDIA, 2021), SXM: 312 TFLOPS bf16, 19.5 fp32, 1555 GB/s (40 GB) and 2039 GB/s (80 GB), NVLink 600 GB/s.
    # DGX A100: an adapter of 200 Gb/s a GPU. PCI Express 4.
    "a100_40gb": GPU("a100_40gb", 312, 19.5, 39.4, 1555, 300, 25, 32),
    "a100_80gb": GPU("a100_80gb", 312, 19.5, 79.1, 2039, 300, 25, 32),
    # H100 data sheet (NVIDIA, 2023), SXM5: 1979 TFLOPS bf16 with sparsity, so 989; 67 fp32, 3.35 TB/s, NVLink 900 GB/s.
    # DGX H100: 400 Gb/s a GPU. PCI Express 5.
    "h100": GPU("h100", 989.4, 66.9, 79.1, 3350, 450, 50, 64),
    # The same sheet, PCIe card: 1513 with sparsity, so 756; 51 fp32, 2 TB/s. NVLink joins pairs only, else PCI Express.
    "h100_pcie": GPU("h100_pcie", 756, 51, 79.1, 2000, 64, 25, 64),
    # H200 data sheet (NVIDIA, 2024), SXM: the H100's arithmetic, 141 GB at 4.8 TB/s.
    "h200": GPU("h200", 989.4, 66.9, 139.8, 4800, 450, 50, 64),
    # Blackwell architecture brief (NVIDIA, 2024), HGX B200 at 1000 W: 4500 TFLOPS bf16 with sparsity, so 2250; 80 fp32, 8 TB/s,
    # NVLink 1.8 TB/s; 180 GB of the 192 are offered. DGX B200: 400 Gb/s a GPU.
    "b200": GPU("b200", 2250, 80, 178.4, 8000, 900, 50, 64),
}


def peak_flops(device_name: str, precision: str) -> float | None:
    """Dense peak in FLOP/s of the GPU that torch.cuda.get_device_name calls so, at "bf16" or "32". None: not in the table.

    A slice of a GPU (MIG) has the whole one's name with a suffix, and is not in the table.
    """
    gpu = _by_device_name(device_name)
    return None if gpu is None else gpu.peak_flops(precision)


def _by_device_name(device_name: str) -> GPU | None:
    words = set(re.split(r"[\s_-]+", device_name.lower()))
    if "mig" in words:
        return None
    if "a100" in words:
        return next((GPUS[f"a100_{size}"] for size in ("40gb", "80gb") if size in words), None)
    if "h100" in words:
        # "NVIDIA H100 80GB HBM3" is SXM; the NVL card has clocks of its own.
        return None if "nvl" in words else GPUS["h100_pcie" if "pcie" in words else "h100"]
    if "h200" in words:
        return None if "nvl" in words else GPUS["h200"]
    return GPUS["b200"] if "b200" in words else None
