"""RMSNorm for the local layer spec."""

from __future__ import annotations

import torch
from megatron.core.transformer.transformer_config import TransformerConfig
from torch.nn.functional import rms_norm

from nemo_amft.parallel import platform


class RMSNorm(torch.nn.Module):
    """Root-mean-square norm over the last dimension, as a module for Megatron's layer specs.

    Megatron-Core's own torch norm refuses sequence parallelism. All it takes is the mark on the weight: each tensor-parallel
    rank then sees a part of the tokens, and `finalize_model_grads` sums the marked gradients over the tensor-parallel group.
    """

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-5, **_unused):
        super().__init__()
        self.eps = eps
        self.weight = torch.nn.Parameter(torch.ones(hidden_size, dtype=config.params_dtype, device=platform.device()))
        self.weight.sequence_parallel = config.sequence_parallel

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Normalise hidden (..., hidden_size); statistics are taken in fp32."""
        return rms_norm(hidden, self.weight.shape, self.weight, self.eps)
