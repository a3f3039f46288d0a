"""The meta-gradient against central finite differences through real optimiser steps, in float64."""

from __future__ import annotations

import math

import pytest
import torch

from nemo_amft.algorithms.meta_gradient import (
    InnerProduct,
    KeptDifference,
    decay_trace,
    meta_gradient,
    split_gradients,
    through_adam,
    through_clipping,
)

ONE_RANK = InnerProduct(owned=[True, True], all_reduce=lambda x: x)
SHAPES = [(3, 4), (5,)]


def _vectors(seed: int, scale: float = 1.0) -> list[torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    return [scale * torch.randn(s, generator=g, dtype=torch.float64) for s in SHAPES]


def _utility(theta: list[torch.Tensor]) -> torch.Tensor:
    """A smooth utility with curvature: no term of the derivative can hide."""
    return sum((torch.sin(t).sum() + 0.1 * (t**3).sum()) for t in theta)


def _grad_u(theta: list[torch.Tensor]) -> list[torch.Tensor]:
    leaves = [t.detach().clone().requires_grad_() for t in theta]
    _utility(leaves).backward()
    return [t.grad for t in leaves]


def _adam_history(theta, optimizer, steps: int) -> None:
    """A few real steps, so that the moments are not those of a fresh optimiser."""
    for i in range(steps):
        for p, g in zip(theta, _vectors(100 + i), strict=True):
            p.grad = g
        optimizer.step()


def _step(mu: float, kind: str, max_norm: float, lr: float = 0.05):
    """theta after one step with weight mu, together with everything the analytic derivative needs."""
    theta = [torch.nn.Parameter(t) for t in _vectors(1)]
    betas, eps = (0.9, 0.95), 1e-8
    optimizer = torch.optim.SGD(theta, lr=lr) if kind == "sgd" else torch.optim.AdamW(theta, lr=lr, betas=betas, eps=eps)
    if kind == "adam":
        _adam_history(theta, optimizer, 4)
    g_sft, g_rl = _vectors(2, 3.0), _vectors(3, 2.0)
    difference = split_gradients(g_sft, g_rl, mu)
    norm = math.sqrt(sum((g**2).sum().item() for g in g_rl))
    if 0.0 < max_norm < norm:
        for g in g_rl:
            g.mul_(max_norm / (norm + 1e-6))
    for p, g in zip(theta, g_rl, strict=True):
        p.grad = g
    optimizer.step()
    through_clipping(difference, g_rl, norm, max_norm, ONE_RANK)
    if kind == "adam":
        states = [optimizer.state[p] for p in theta]
        through_adam(difference, g_rl, states, betas, eps, [int(s["step"]) for s in states])
    return [p.detach() for p in theta], KeptDifference(difference, lr, 0)


@pytest.mark.parametrize(
    ("kind", "max_norm", "tolerance"),
    [("sgd", 0.0, 1e-6), ("adam", 0.0, 1e-5), ("adam", 1.0, 1e-5), ("adam", 1e9, 1e-5), ("sgd", 1.0, 1e-6)],
)
def test_raw_meta_gradient_is_the_derivative_of_utility_through_the_real_step(kind, max_norm, tolerance):
    mu, h = 0.3, 1e-5
    theta, kept = _step(mu, kind, max_norm)
    analytic = meta_gradient(_grad_u(theta), kept, "raw", ONE_RANK).value
    above, below = (_utility(_step(mu + d, kind, max_norm)[0]).item() for d in (h, -h))
    assert analytic == pytest.approx((above - below) / (2 * h), rel=tolerance)


def test_trace_is_the_derivative_over_several_steps_where_the_hessian_can_be_dropped():
    """Losses linear in theta (constant gradients) and plain steps: every past step's shift of theta reaches theta_t
    unchanged."""
    mu, h, rates = 0.4, 1e-5, (0.05, 0.02, 0.03)

    def run(m: float):
        theta, trace, previous = _vectors(1), None, None
        for i, lr in enumerate(rates):
            g_sft, g_rl = _vectors(10 + i), _vectors(20 + i)
            difference = split_gradients(g_sft, g_rl, m)
            theta = [t - lr * g for t, g in zip(theta, g_rl, strict=True)]
            # as MetaUpdate.keep does: lambda = 1, each step at its own learning rate
            trace = difference if trace is None else decay_trace(trace, difference, 1.0 * previous / lr)
            previous = lr
        return theta, KeptDifference(trace, previous, len(rates) - 1)

    theta, kept = run(mu)
    above, below = (_utility(run(mu + d)[0]).item() for d in (h, -h))
    found, difference = meta_gradient(_grad_u(theta), kept, "raw", ONE_RANK).value, (above - below) / (2 * h)
    print(f"trace over 3 steps: finite difference {difference:.10g}, g_mu {found:.10g}, {found / difference - 1:.1e} off")
    assert found == pytest.approx(difference, rel=1e-6)


def test_scales_are_related_as_they_should_be():
    theta, kept = _step(0.3, "sgd", 0.0)
    grad_u = _grad_u(theta)
    raw, free, cosine = (meta_gradient(grad_u, kept, scale, ONE_RANK) for scale in ("raw", "lr_free", "cosine"))
    assert raw.value == pytest.approx(kept.learning_rate * free.value)
    assert cosine.value == pytest.approx(free.value / (free.grad_u_norm * free.direction_norm))
    assert -1.0 <= cosine.value <= 1.0


def test_zero_and_non_finite_gradients_have_a_defined_result():
    _, kept = _step(0.3, "sgd", 0.0)
    zero = [torch.zeros(s) for s in SHAPES]
    assert [meta_gradient(zero, kept, scale, ONE_RANK).value for scale in ("raw", "lr_free", "cosine")] == [0.0, 0.0, 0.0]
    assert not meta_gradient([torch.full(s, torch.nan) for s in SHAPES], kept, "cosine", ONE_RANK).finite


def test_shards_that_are_not_owned_do_not_count():
    a = _vectors(1)
    (dot,) = InnerProduct(owned=[True, False], all_reduce=lambda x: x)((a, a))
    assert dot == pytest.approx((a[0] ** 2).sum().item())


def test_splitting_makes_the_mixture_and_the_difference_in_place():
    sft, rl, mu = _vectors(5), _vectors(6), 0.7
    mixture = [mu * a + (1 - mu) * b for a, b in zip(sft, rl, strict=True)]
    gap = [a - b for a, b in zip(sft, rl, strict=True)]
    given = [x.clone() for x in sft], [x.clone() for x in rl]
    difference = split_gradients(*given, mu)
    assert all(x is y for x, y in zip(difference, given[0], strict=True))
    torch.testing.assert_close(difference, gap)
    torch.testing.assert_close(given[1], mixture)
