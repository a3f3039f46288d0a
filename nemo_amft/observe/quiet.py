"""Keeps other libraries' notices, repeated by every rank, out of a run's output."""

from __future__ import annotations

import logging
import os
import warnings


def quiet_libraries() -> None:
    """Silence notices that are known and harmless, before the libraries are imported. Whatever else is warned of still shows.

    What is absent by design on a CPU (Transformer Engine, Apex), and what that costs, is said by `nemo_amft.doctor`.
    """
    # C++ notices, such as vLLM's on the memory of the node it runs on; read when torch is imported.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    for module in (r"megatron\.", r"lightning\.", r"torch\.distributed\."):
        warnings.filterwarnings("ignore", module=module)
    # Issued on behalf of the caller, so not to be told by their module.
    for message in (r"(?s).*(Transformer Engine|Apex)", r"(?s).*\.grad attribute of a Tensor that is not a leaf"):
        warnings.filterwarnings("ignore", message=message)
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    warnings.filterwarnings("ignore", category=FutureWarning)
    for name in (
        "megatron.core",
        "nemo_logger",
        "lightning",
        "torch.distributed.checkpoint",
        "vllm",
        "huggingface_hub.repocard",
    ):
        logging.getLogger(name).setLevel(logging.ERROR)
    # Its writer's error is raised, too, and told with the room there is (observe/files.py).
    logging.getLogger("megatron.core.dist_checkpointing.strategies.filesystem_async").setLevel(logging.CRITICAL)
    logging.raiseExceptions = False  # of a log file on a full disk: a traceback a line, in front of what matters
    # Of a build for CUDA on a machine with nvcc and no GPU. torch sets the level of its loggers itself, so a filter.
    logging.getLogger("torch.utils.cpp_extension").addFilter(lambda record: "No CUDA runtime" not in record.msg)
