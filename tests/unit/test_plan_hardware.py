"""Peaks by the names that CUDA gives."""

from __future__ import annotations

import pytest

from nemo_amft.planning.hardware import GPUS, peak_flops


@pytest.mark.parametrize(
    ("name", "bf16"),
    [
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA A100-PCIE-40GB", 312e12),
        ("NVIDIA A100 80GB PCIe", 312e12),
        ("NVIDIA H100 80GB HBM3", 989.4e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H200", 989.4e12),
        ("NVIDIA B200", 2250e12),
    ],
)
def test_names_that_cuda_gives_are_known(name, bf16):
    assert peak_flops(name, "bf16") == bf16


@pytest.mark.parametrize(
    "name", ["NVIDIA GH200 480GB", "NVIDIA H100 NVL", "NVIDIA A100-SXM4-40GB MIG 1g.5gb", "NVIDIA A10", "Tesla T4", "cpu"]
)
def test_a_gpu_of_another_peak_is_not_taken_for_one_of_the_table(name):
    assert peak_flops(name, "bf16") is None


def test_fp32_is_the_vector_units_and_never_near_the_matrix_units():
    assert peak_flops("NVIDIA A100-SXM4-80GB", "32") == 19.5e12
    assert all(10 < gpu.bf16_tflops / gpu.fp32_tflops < 30 for gpu in GPUS.values())
