"""The meta-gradient of mu: one inner product of gradients (paper, Eq. 25).

The update from theta_{t-1} to theta_t moves along -(mu g_SFT + (1 - mu) g_RL), so its derivative with respect to mu is
-alpha (g_SFT - g_RL), and with a validation utility U

    dU(theta_t) / dmu = -alpha < grad U(theta_t), g_SFT(theta_{t-1}) - g_RL(theta_{t-1}) >.

The functions here work on lists of tensors: this rank's shards of each vector, in one order. `InnerProduct` knows which of
them count on this rank, so that the sum over ranks holds every element of the model once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from nemo_amft.types import MetaGradient

Shards = list[Tensor]


@dataclass(frozen=True)
class InnerProduct:
    """<a, b> over the whole model. `owned[i]`: whether shard i counts on this rank. `all_reduce` sums a float64 vector over
    the ranks that together hold every parameter once."""

    owned: Sequence[bool]
    all_reduce: Callable[[Tensor], Tensor]

    def __call__(self, *pairs: tuple[Shards, Shards]) -> list[float]:
        """One number a pair, all by a single all-reduce. fp32 shards, fp64 accumulation."""
        sums = [sum((_dot(x, y) for x, y, mine in zip(a, b, self.owned, strict=True) if mine), 0.0) for a, b in pairs]
        return self.all_reduce(torch.tensor(sums, dtype=torch.float64)).tolist()


def _dot(x: Tensor, y: Tensor, chunk: int = 1 << 24) -> float:
    # In chunks, so that the fp64 copies stay small beside the shard itself.
    x, y = x.reshape(-1), y.reshape(-1)
    return float(
        sum(torch.dot(a.double(), b.double()) for a, b in zip(x.split(chunk), y.split(chunk), strict=True)) if len(x) else 0.0
    )


@dataclass
class KeptDifference:
    """What is left of step t - 1 when step t wants a meta-gradient: dtheta_t / dmu = -learning_rate * direction."""

    direction: Shards
    """g_SFT - g_RL; with the adam preconditioner its image under the derivative of the update; with a trace, decayed sums of
    it."""
    learning_rate: float
    """alpha of step t - 1."""
    step: int
    """t - 1."""

    @property
    def num_bytes(self) -> int:
        return sum(x.numel() * x.element_size() for x in self.direction)


def meta_gradient(
    grad_u: Shards, kept: KeptDifference, scale: Literal["raw", "cosine", "lr_free"], product: InnerProduct
) -> MetaGradient:
    """g_mu from grad U at theta_t and what was kept of step t - 1.

    raw: Eq. 25. lr_free: without alpha. cosine: over both norms, in [-1, 1]; 0 where either vector is 0.
    """
    dot, uu, dd = product((grad_u, kept.direction), (grad_u, grad_u), (kept.direction, kept.direction))
    norms = math.sqrt(max(uu, 0.0)) * math.sqrt(max(dd, 0.0))
    value = {
        "raw": -kept.learning_rate * dot,
        "lr_free": -dot,
        "cosine": -dot / norms if norms > 0.0 else (0.0 if norms == 0.0 else math.nan),
    }[scale]
    return MetaGradient(value, dot, math.sqrt(max(uu, 0.0)), math.sqrt(max(dd, 0.0)))


def split_gradients(g_sft: Shards, g_rl: Shards, mu: float) -> Shards:
    """From g_SFT and g_RL make the step's gradient and their difference, without a third buffer.

    In place: `g_rl` becomes mu g_SFT + (1 - mu) g_RL = g_RL + mu (g_SFT - g_RL); `g_sft` becomes the difference and is
    returned.
    """
    for sft, rl in zip(g_sft, g_rl, strict=True):
        sft.sub_(rl)
        rl.add_(sft, alpha=mu)
    return g_sft


def through_clipping(difference: Shards, gradient: Shards, norm: float, max_norm: float, product: InnerProduct) -> None:
    """Derivative of the clipped gradient with respect to mu, in place in `difference`.

    `gradient` is the step's gradient AFTER clipping, c g with c = max_norm / (norm + 1e-6), and `norm` the norm of g before.
    Then d(c g)/dmu = c d - c g <g, d> / (norm (norm + 1e-6)): one more inner product. Nothing changes where clipping was not
    active.
    """
    if not 0.0 < max_norm < norm:
        return
    coefficient = max_norm / (norm + 1.0e-6)
    (clipped_dot,) = product((gradient, difference))
    dot = clipped_dot / coefficient
    for d, g in zip(difference, gradient, strict=True):
        d.mul_(coefficient).add_(g, alpha=-dot / (norm * (norm + 1.0e-6)))


def through_adam(
    difference: Shards,
    gradient: Shards,
    states: Sequence[dict[str, Any]],
    betas: tuple[float, float],
    eps: float,
    steps: Sequence[int],
) -> None:
    """Exact element-wise derivative of the AdamW update with respect to its gradient, applied in place to `difference`.

    With m, v the moments AFTER the step, g the (clipped) gradient it took, and bias corrections b1, b2:
    update = (m / b1) / (sqrt(v / b2) + eps), dm/dg = 1 - beta1, dv/dg = 2 (1 - beta2) g. Decoupled weight decay does not
    depend on g.
    """
    beta1, beta2 = betas
    for d, g, state, step in zip(difference, gradient, states, steps, strict=True):
        c1, c2 = 1 - beta1**step, 1 - beta2**step
        m, v = (state[name].to(d.device) for name in ("exp_avg", "exp_avg_sq"))  # an offloaded optimiser has them elsewhere
        root = (v / c2).sqrt()
        denominator = root + eps
        first = (1 - beta1) / (c1 * denominator)
        # Where v is 0 so is every gradient yet seen, and with it the second term.
        second = (m / c1) * (1 - beta2) * g / (c2 * root.clamp(min=torch.finfo(root.dtype).tiny) * denominator**2)
        d.mul_(first - torch.where(root > 0, second, torch.zeros_like(second)))


def decay_trace(trace: Shards, difference: Shards, decay: float) -> Shards:
    """z_t = decay z_{t-1} + difference, in place in `trace`."""
    for z, d in zip(trace, difference, strict=True):
        z.mul_(decay).add_(d)
    return trace
