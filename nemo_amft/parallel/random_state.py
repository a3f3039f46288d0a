"""Every random generator of a rank, saved and restored together."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from megatron.core.tensor_parallel.random import get_cuda_rng_tracker

from nemo_amft.parallel import platform


def get_state() -> dict[str, Any]:
    """State of Python's, NumPy's, torch's, the device's and Megatron's model-parallel generators; loads with
    weights_only=True."""
    kind, keys, position, has_gauss, cached = np.random.get_state()
    assert kind == "MT19937"
    return {
        "python": random.getstate(),
        "numpy": (torch.from_numpy(keys.astype(np.int64)), position, has_gauss, cached),
        "torch": torch.get_rng_state(),
        "device": platform.get_rng_state(),
        "megatron": dict(get_cuda_rng_tracker().get_states()),
    }


def set_state(state: dict[str, Any]) -> None:
    """Restore what `get_state` returned."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state(("MT19937", keys.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"])
    platform.set_rng_state(state["device"])
    get_cuda_rng_tracker().set_states(dict(state["megatron"]))
