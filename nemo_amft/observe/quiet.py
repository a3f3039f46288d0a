"""Keeps other libraries' notices, repeated by every rank, out of a run's output."""

from __future__ import annotations

import logging
import warnings

_EXPECTED = (
    r"(?s).*(Transformer Engine|Apex)",  # absent by design on CPU; `nemo_amft.doctor` says what is missing and what that costs
    r"(?s).*megatron",
    r"(?s).*barrier\(\)",
    r"(?s).*_all_gather_base|.*_reduce_scatter_base",
    r"(?s).*The \.grad attribute of a Tensor that is not a leaf",
    r"(?s).*TypedStorage is deprecated",
)


def quiet_libraries() -> None:
    """Silence warnings that are known and harmless; anything else still shows."""
    for pattern in _EXPECTED:
        warnings.filterwarnings("ignore", message=pattern)
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    warnings.filterwarnings("ignore", category=FutureWarning)
    for name in ("megatron.core", "nemo_logger", "lightning", "torch.distributed.checkpoint"):
        logging.getLogger(name).setLevel(logging.ERROR)
