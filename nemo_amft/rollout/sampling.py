"""Draws tokens from logits. Shapes: B sequences, V vocabulary."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from nemo_amft.types import SamplingParams


def uniforms(seeds: Sequence[int], length: int) -> Tensor:
    """(len(seeds), length) float64 in [0, 1): row i comes from a generator of its own with seed `seeds[i]`."""
    drawn = torch.empty(len(seeds), length, dtype=torch.float64)
    generator = torch.Generator()
    for row, seed in zip(drawn, seeds, strict=True):
        row.uniform_(generator=generator.manual_seed(seed))
    return drawn


def sample(logits_BV: Tensor, uniform_B: Tensor, params: SamplingParams) -> tuple[Tensor, Tensor]:
    """Tokens (B,), and the float32 log-probs (B, V) of softmax(logits / temperature), before top-p and top-k.

    By inverse CDF: token t is drawn where `uniform_B` in [0, 1) falls into t's interval of the cumulated probabilities, so that
    a uniform decides alike whatever the batch around it. Temperature 0 takes the argmax, and log-probs at temperature 1.
    """
    logits_BV = logits_BV.float()
    if params.temperature > 0.0:
        logits_BV = logits_BV / params.temperature
    log_prob_BV = logits_BV.log_softmax(-1)
    if params.temperature == 0.0:
        token_B = log_prob_BV.argmax(-1)
    else:
        token_B = _inverse_cdf(_truncate(log_prob_BV.exp(), params.top_p, params.top_k), uniform_B)
    return token_B, log_prob_BV


def _truncate(prob_BV: Tensor, top_p: float, top_k: int) -> Tensor:
    """Zero all but the `top_k` most probable tokens (0: all), then all but the fewest that hold `top_p` of what is left."""
    if top_p >= 1.0 and not 0 < top_k < prob_BV.size(-1):
        return prob_BV
    sorted_BV, order_BV = prob_BV.sort(dim=-1, descending=True, stable=True)
    if top_k > 0:
        sorted_BV[:, top_k:] = 0.0
    if top_p < 1.0:
        above_BV = sorted_BV.cumsum(-1) - sorted_BV
        sorted_BV = sorted_BV.masked_fill(above_BV >= top_p * sorted_BV.sum(-1, keepdim=True), 0.0)
    return torch.zeros_like(prob_BV).scatter(-1, order_BV, sorted_BV)


def _inverse_cdf(prob_BV: Tensor, uniform_B: Tensor) -> Tensor:
    """First token whose cumulated probability exceeds uniform * total; never one of probability 0."""
    cdf_BV = prob_BV.double().cumsum(-1)
    total_B1 = cdf_BV[:, -1:]
    # Rounded up, the threshold could reach the total, beyond every token.
    threshold_B1 = torch.minimum(uniform_B[:, None] * total_B1, total_B1.nextafter(torch.zeros_like(total_B1)))
    # Of probabilities that are NaN nothing exceeds anything; their log-probs show it (Sampler refuses them).
    return torch.searchsorted(cdf_BV, threshold_B1, right=True)[:, 0].clamp(max=prob_BV.size(-1) - 1)
