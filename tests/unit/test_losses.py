"""Losses against formulas written out again, token by token, and their behaviour at the edges."""

from __future__ import annotations

import math

import pytest
import torch

from nemo_amft.algorithms.demonstration_losses import AnchoredNLL, SelfImitationLoss
from nemo_amft.algorithms.losses import BySource, PolicyLoss, SFTLoss, UtilityLoss, ValueLoss, token_weights
from nemo_amft.types import Totals


def _batch(seed: int = 0, b: int = 3, s: int = 5):
    g = torch.Generator().manual_seed(seed)
    log_prob = (-torch.rand(b, s, generator=g, dtype=torch.float64)).requires_grad_()
    entropy = torch.rand(b, s, generator=g, dtype=torch.float64).requires_grad_()
    mask = torch.rand(b, s, generator=g) > 0.3
    mask[0, 0] = True
    return g, log_prob, entropy, mask


def test_ppo_loss_and_its_gradient_follow_the_clipped_surrogate():
    g, log_prob, entropy, mask = _batch()
    old = log_prob.detach() + 0.6 * torch.randn(log_prob.shape, generator=g, dtype=torch.float64)
    advantage = torch.randn(log_prob.shape, generator=g, dtype=torch.float64)
    behavior = old + 0.1 * torch.randn(log_prob.shape, generator=g, dtype=torch.float64)
    extras = {"advantage": advantage, "old_log_prob": old, "behavior_log_prob": behavior}
    totals = Totals(int(mask.sum()) + 7, 3)  # seven more tokens on other ranks
    loss, metrics = PolicyLoss(clip_ratio=0.2)(log_prob, entropy, mask, extras, totals)
    loss.backward()

    expected, clipped = 0.0, 0
    gradient = torch.zeros_like(old)
    for i in range(mask.shape[0]):
        for j in range(mask.shape[1]):
            if not mask[i, j]:
                continue
            ratio, a = math.exp(log_prob[i, j].item() - old[i, j].item()), advantage[i, j].item()
            low, high = ratio * a, min(max(ratio, 0.8), 1.2) * a
            expected -= min(low, high) / totals.tokens
            clipped += not 0.8 <= ratio <= 1.2
            gradient[i, j] = -low / totals.tokens if low <= high else 0.0
    assert loss.item() == pytest.approx(expected, rel=1e-6)
    torch.testing.assert_close(log_prob.grad, gradient, rtol=1e-6, atol=1e-12)
    assert metrics["clip_fraction"][0].item() == clipped


def test_truncated_importance_weights_are_capped_and_not_differentiated():
    _, log_prob, entropy, mask = _batch(1)
    old = log_prob.detach()
    gap = torch.linspace(-1, 1, old.numel(), dtype=torch.float64).view_as(old)
    extras = {"advantage": torch.ones_like(old), "behavior_log_prob": old - gap}
    loss, _ = PolicyLoss(importance_cap=1.5)(log_prob, entropy, mask, extras, Totals(int(mask.sum()), 3))
    loss.backward()
    expected = torch.where(mask, -gap.exp().clamp(max=1.5) / mask.sum(), 0.0)
    torch.testing.assert_close(log_prob.grad, expected)


def test_kl_term_is_the_k3_estimator_and_pulls_towards_the_reference():
    _, log_prob, entropy, mask = _batch(2)
    reference = log_prob.detach() - 0.3
    extras = {
        "advantage": torch.zeros_like(reference),
        "behavior_log_prob": log_prob.detach(),
        "reference_log_prob": reference,
    }
    loss, metrics = PolicyLoss(kl_coef=0.5)(log_prob, entropy, mask, extras, Totals(int(mask.sum()), 3))
    loss.backward()
    k3 = math.exp(-0.3) + 0.3 - 1
    assert loss.item() == pytest.approx(0.5 * k3, rel=1e-6)
    assert metrics["kl/reference"][0].item() / metrics["kl/reference"][1].item() == pytest.approx(k3, rel=1e-6)
    assert (log_prob.grad[mask] > 0).all()  # descending lowers log-probs that are above the reference's


@pytest.mark.parametrize("loss", [PolicyLoss(importance_cap=2.0, kl_coef=0.1), AnchoredNLL(), SelfImitationLoss(form="ratio")])
@pytest.mark.parametrize("apart", [100.0, -100.0, 4e5])
def test_log_ratios_beyond_20_are_held_there_have_finite_gradients_and_are_counted(loss, apart):
    """A policy that has moved far from the one that is compared with: e^100 is inf in fp32, and inf * 0 is NaN."""
    log_prob = torch.tensor([[-1.0, -1.0, -1.0]], requires_grad=True)
    other = torch.tensor([[-1.0 - apart, -1.0 + apart, -1.1]])
    extras = {"advantage": torch.tensor([[1.0, -1.0, 1.0]]), "correct": torch.ones(1, 1)}
    extras |= dict.fromkeys(("old_log_prob", "behavior_log_prob", "reference_log_prob"), other)
    value, metrics = loss(log_prob, torch.ones(1, 3), torch.tensor([[True, True, True]]), extras, Totals(3, 1))
    value.backward()
    assert value.isfinite()
    assert log_prob.grad.isfinite().all()
    assert all(total.isfinite() for total, _ in metrics.values())
    assert metrics["loss/clamped_tokens"][0].item() == 2.0
    if "kl/reference" in metrics:  # k3 of -20, 20 and -0.1
        expected = (math.exp(-20) + 19) + (math.exp(20) - 21) + (math.exp(-0.1) - 0.9)
        assert metrics["kl/reference"][0].item() == pytest.approx(expected, rel=1e-6)


def test_a_log_prob_that_is_no_number_is_not_hidden():
    log_prob = torch.tensor([[math.nan, -1.0]])
    extras = {"advantage": torch.ones(1, 1), "behavior_log_prob": torch.zeros(1, 2)}
    assert PolicyLoss()(log_prob, torch.ones(1, 2), torch.tensor([[True, True]]), extras, Totals(2, 1))[0].isnan()


def test_any_split_into_micro_batches_gives_the_loss_of_the_whole():
    g, log_prob, entropy, mask = _batch(3, b=6)
    extras = {"advantage": torch.randn(6, 1, generator=g, dtype=torch.float64), "behavior_log_prob": log_prob.detach()}
    totals = Totals(int(mask.sum()), 6)
    for how in ("token_mean", "seq_mean_token_sum_norm", "seq_mean_token_mean"):
        loss = PolicyLoss(aggregation=how, constant=8, entropy_coef=0.01)
        whole = loss(log_prob, entropy, mask, extras, totals)[0]
        parts = sum(
            loss(log_prob[i:j], entropy[i:j], mask[i:j], {k: v[i:j] for k, v in extras.items()}, totals)[0]
            for i, j in ((0, 1), (1, 4), (4, 6))
        )
        assert parts.item() == pytest.approx(whole.item(), rel=1e-12)


def test_aggregations_are_what_their_names_say():
    mask = torch.tensor([[True, True, True, False], [True, False, False, False]])
    totals = Totals(4, 2)
    values = torch.tensor([[1.0, 2.0, 3.0, 99.0], [4.0, 99.0, 99.0, 99.0]])
    mean = {how: (values * token_weights(mask, how, totals, 10)).sum().item() for how in (
        "token_mean", "seq_mean_token_sum_norm", "seq_mean_token_mean")}  # fmt: skip
    assert mean == pytest.approx({"token_mean": 10 / 4, "seq_mean_token_sum_norm": 10 / 20, "seq_mean_token_mean": (2 + 4) / 2})


@pytest.mark.parametrize("loss", [SFTLoss(), PolicyLoss(), UtilityLoss()])
def test_no_trained_token_gives_an_exact_zero_that_carries_the_graph(loss):
    _, log_prob, entropy, mask = _batch(4)
    extras = {"advantage": torch.full((3, 1), torch.inf), "behavior_log_prob": torch.zeros_like(entropy)}
    if not isinstance(loss, PolicyLoss):
        extras["advantage"] = torch.ones(3, 1)
    value, metrics = loss(log_prob, entropy, torch.zeros_like(mask), extras, Totals(0, 0))
    value.backward()
    assert value.item() == 0.0
    assert log_prob.grad is not None
    assert not log_prob.grad.any()
    assert all(torch.isfinite(total) for total, _ in metrics.values())


def test_value_loss_is_clipped_around_the_old_value():
    value = torch.tensor([[0.0, 1.0, 5.0]], requires_grad=True)
    extras = {"old_value": torch.tensor([[0.0, 0.0, 0.0]]), "returns": torch.tensor([[1.0, 0.0, 0.0]])}
    mask = torch.tensor([[True, True, False]])
    loss, metrics = ValueLoss(0.2)(value, mask, extras, Totals(2, 1))
    # token 0: unclipped (0-1)^2 = 1 and clipped the same; token 1: max((1-0)^2, (0.2-0)^2) = 1; token 2 is not trained
    assert loss.item() == pytest.approx(0.5 * (1 + 1) / 2)
    assert metrics["value/error_squared"][0].item() == 1.0
    near = ValueLoss(0.2)(torch.tensor([[0.9, 0.0, 0.0]]), mask, extras, Totals(2, 1))
    # token 0 moved towards its return further than the clip range: the pessimistic (0.2-1)^2 counts
    assert near[0].item() == pytest.approx(0.5 * 0.64 / 2)
    assert near[1]["value/clip_fraction"][0].item() == 1.0


def test_sft_loss_is_the_token_mean_and_reports_entropy():
    _, log_prob, entropy, mask = _batch(5)
    loss, metrics = SFTLoss()(log_prob, entropy, mask, {}, Totals(int(mask.sum()), 3))
    assert loss.item() == pytest.approx(-log_prob[mask].mean().item())
    assert metrics["entropy/sft"][0].item() == pytest.approx(entropy[mask].sum().item())


def test_the_loss_of_each_source_is_the_mean_over_its_own_tokens_and_changes_nothing_else():
    _, log_prob, entropy, mask = _batch(3)
    mask[2] = False  # a source may have no token in a micro-batch
    extras, totals = {"source": torch.tensor([[1.0], [0.0], [2.0]])}, Totals(int(mask.sum()) + 5, 4)
    plain, expected = SFTLoss()(log_prob, entropy, mask, {}, totals)
    loss, metrics = BySource(SFTLoss(), ("a", "b", "c"))(log_prob, entropy, mask, extras, totals)
    assert loss.item() == plain.item()
    assert set(metrics) == set(BySource(SFTLoss(), ("a", "b", "c")).metrics)
    for source, row in (("b", 0), ("a", 1), ("c", 2)):
        total, count = metrics[f"loss/sft/{source}"]
        assert (total.item(), count.item()) == (pytest.approx(-log_prob[row][mask[row]].sum().item()), mask[row].sum().item())
    assert metrics["loss/sft"] == expected["loss/sft"]
