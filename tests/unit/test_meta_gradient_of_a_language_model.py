"""Eq. 25 on a language model small enough to enumerate U exactly: a two-token response over six tokens, in float64.

Nothing here knows the formula under test: U is a sum over all 36 responses, and its derivative with respect to mu is a central
finite difference through the real losses and the real optimiser step.
"""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from nemo_amft.algorithms.advantages import leave_one_out
from nemo_amft.algorithms.losses import PolicyLoss, SFTLoss, UtilityLoss
from nemo_amft.algorithms.meta_gradient import (
    InnerProduct,
    KeptDifference,
    meta_gradient,
    split_gradients,
    through_adam,
    through_clipping,
)
from nemo_amft.types import Totals

VOCAB, PROMPT, LENGTH = 6, (1, 4, 2), 2
RESPONSES = list(itertools.product(range(VOCAB), repeat=LENGTH))
BETAS, EPS, LR = (0.9, 0.95), 1e-8, 0.05


def _reward(response: tuple[int, ...]) -> float:
    return float(sum(response) % 4 == 1) + 0.5 * (response[0] == 3)


class TinyTransformer(torch.nn.Module):
    """One causal attention layer and an MLP in float64 throughout (transformers' norms would round to float32)."""

    def __init__(self, width: int = 8):
        super().__init__()
        self.embed, self.head = torch.nn.Embedding(VOCAB, width), torch.nn.Linear(width, VOCAB)
        self.qkv, self.up, self.down = torch.nn.Linear(width, 3 * width), torch.nn.Linear(width, 12), torch.nn.Linear(12, width)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embed(tokens)
        x = x + torch.nn.functional.scaled_dot_product_attention(*self.qkv(x).chunk(3, -1), is_causal=True)
        return self.head(x + self.down(torch.tanh(self.up(x))))


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return TinyTransformer().double()


def _log_probs(model, responses) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(log-prob, entropy, mask), each [B, S], of responses to the one prompt; position i predicts token i + 1."""
    tokens = torch.tensor([(*PROMPT, *r) for r in responses])
    logits = model(tokens[:, :-1]).log_softmax(-1)
    log_prob = logits.gather(-1, tokens[:, 1:, None])[..., 0]
    mask = torch.arange(tokens.shape[1] - 1) >= len(PROMPT) - 1
    return log_prob, -(logits.exp() * logits).sum(-1), mask.expand_as(log_prob)


def _utility(model) -> torch.Tensor:
    """U = sum over all responses of probability times reward."""
    log_prob, _, mask = _log_probs(model, RESPONSES)
    return ((log_prob * mask).sum(-1).exp() * torch.tensor([_reward(r) for r in RESPONSES], dtype=torch.float64)).sum()


def _gradients(model, loss, responses, extras) -> list[torch.Tensor]:
    log_prob, entropy, mask = _log_probs(model, responses)
    value, _ = loss(log_prob, entropy, mask, extras, Totals(int(mask.sum()), len(responses)))
    return list(torch.autograd.grad(value, list(model.parameters())))


def _enumerated_grad_u(model) -> list[torch.Tensor]:
    return list(torch.autograd.grad(_utility(model), list(model.parameters())))


def _product(model) -> InnerProduct:
    return InnerProduct(owned=[True] * len(list(model.parameters())), all_reduce=lambda x: x)


def _step(model, mu: float, kind: str, max_norm: float) -> KeptDifference:
    """One real step of the mixed loss, from the model's present weights; returns what is kept of it."""
    parameters = list(model.parameters())
    generator = torch.Generator().manual_seed(7)
    if kind == "sgd":
        optimizer = torch.optim.SGD(parameters, lr=LR)
    else:
        optimizer = torch.optim.AdamW(parameters, lr=LR, betas=BETAS, eps=EPS, weight_decay=0.1)
        for p in parameters:  # moments of a run under way
            moments = (
                torch.randn(p.shape, generator=generator, dtype=p.dtype),
                torch.rand(p.shape, generator=generator, dtype=p.dtype),
            )
            optimizer.state[p] = {"step": torch.tensor(3.0), "exp_avg": 0.1 * moments[0], "exp_avg_sq": 0.1 * moments[1] + 0.01}
    demonstrations, drawn = [(3, 2), (1, 0)], [(0, 5), (2, 2), (3, 4), (5, 1)]
    advantage = torch.tensor([[0.7], [-1.2], [0.4], [0.1]], dtype=torch.float64)
    g_sft = _gradients(model, SFTLoss(), demonstrations, {})
    behavior = _log_probs(model, drawn)[0].detach()
    g_rl = _gradients(model, PolicyLoss(), drawn, {"advantage": advantage, "behavior_log_prob": behavior})
    difference = split_gradients(g_sft, g_rl, mu)
    norm = math.sqrt(sum((g**2).sum().item() for g in g_rl))
    if 0.0 < max_norm < norm:
        for g in g_rl:
            g.mul_(max_norm / (norm + 1e-6))
    for p, g in zip(parameters, g_rl, strict=True):
        p.grad = g
    optimizer.step()
    if kind == "adam":
        through_clipping(difference, g_rl, norm, max_norm, _product(model))
        states = [optimizer.state[p] for p in parameters]
        through_adam(difference, g_rl, states, BETAS, EPS, [int(s["step"]) for s in states])
    for p in parameters:
        p.grad = None
    return KeptDifference(difference, LR, 0)


def _restored(model, weights) -> None:
    with torch.no_grad():
        for p, w in zip(model.parameters(), weights, strict=True):
            p.copy_(w)


@pytest.mark.parametrize(
    ("kind", "max_norm", "tolerance"),
    [("sgd", 0.0, 1e-6), ("adam", 0.0, 1e-5), ("adam", 0.5, 1e-5)],
    ids=["sgd", "adam", "clip"],
)
def test_g_mu_is_the_derivative_of_the_enumerated_utility(model, record_property, kind, max_norm, tolerance):
    start, mu, h = [p.detach().clone() for p in model.parameters()], 0.4, 1e-4

    def utility_after(m: float) -> float:
        _restored(model, start)
        _step(model, m, kind, max_norm)
        return _utility(model).item()

    difference = (utility_after(mu + h) - utility_after(mu - h)) / (2 * h)
    _restored(model, start)
    kept = _step(model, mu, kind, max_norm)
    found = meta_gradient(_enumerated_grad_u(model), kept, "raw", _product(model)).value
    _restored(model, start)
    print(f"{kind}, clip {max_norm}: finite difference {difference:.10g}, g_mu {found:.10g}, {found / difference - 1:.1e} off")
    assert abs(difference) > 1e-4, "nothing to compare"
    assert found == pytest.approx(difference, rel=tolerance)


def test_the_sampled_estimator_of_grad_u_is_unbiased(model):
    """Mean over many draws of the leave-one-out REINFORCE gradient against the enumerated one, in standard errors."""
    exact = torch.cat([g.flatten() for g in _enumerated_grad_u(model)])
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        log_prob, _, mask = _log_probs(model, RESPONSES)
        probabilities = (log_prob * mask).sum(-1).exp()
    draws = []
    for _ in range(1500):
        chosen = torch.multinomial(probabilities, 4, replacement=True, generator=generator).tolist()
        responses = [RESPONSES[i] for i in chosen]
        advantage = torch.tensor(leave_one_out([_reward(r) for r in responses]), dtype=torch.float64)[:, None]
        gradient = _gradients(model, UtilityLoss(), responses, {"advantage": advantage})
        draws.append(torch.cat([g.flatten() for g in gradient]))
    sample = torch.stack(draws)
    error = sample.std(0) / math.sqrt(len(draws))
    moving = error > 1e-9
    z = ((sample.mean(0) - exact)[moving] / error[moving]).abs()
    assert z.mean() < 1.2  # 0.8 for a normal variable
    assert z.max() < 5.0
    # and the comparison can tell a wrong estimator: a baseline that includes the sample itself shrinks the gradient by 3/4
    biased = (0.75 * sample.mean(0) - exact)[moving] / error[moving]
    assert biased.abs().mean() > 2.0
