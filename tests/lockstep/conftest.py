"""Ranks that share a process."""

from __future__ import annotations

import gc

import pytest

from nemo_amft.parallel import platform


@pytest.fixture(autouse=True)
def in_one_process(monkeypatch):
    """On a CPU, and without walks over the objects of all ranks, for which Megatron's checkpoints ask on each of them."""
    if platform.is_gpu():
        pytest.skip("lockstep ranks share a CPU: hide the GPU with CUDA_VISIBLE_DEVICES=")
    monkeypatch.setattr(gc, "collect", lambda *_: 0)
