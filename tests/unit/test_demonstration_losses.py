"""The compared methods' losses against their formulas written out token by token, in float64."""

from __future__ import annotations

import math

import pytest
import torch

from nemo_amft.algorithms.demonstration_losses import (
    AnchoredNLL,
    MixedPolicyLoss,
    OffPolicyLoss,
    SelfImitationLoss,
    WeightedNLL,
)
from nemo_amft.algorithms.losses import PolicyLoss
from nemo_amft.types import Totals

AGGREGATIONS = ("token_mean", "seq_mean_token_sum_norm", "seq_mean_token_mean")
CONSTANT = 9
LOSSES = [
    OffPolicyLoss("shaped"),
    OffPolicyLoss("ratio"),
    OffPolicyLoss("log_prob", aggregation="seq_mean_token_mean"),
    MixedPolicyLoss(PolicyLoss(entropy_coef=0.01)),
    MixedPolicyLoss(PolicyLoss(aggregation="seq_mean_token_sum_norm", constant=CONSTANT), "log_prob"),
    WeightedNLL("phi"),
    WeightedNLL("entropy", 0.5),
    SelfImitationLoss(),
    SelfImitationLoss(form="prob", aggregation="seq_mean_token_sum_norm", constant=CONSTANT, entropy_coef=0.01),
    SelfImitationLoss(form="ratio"),
    AnchoredNLL(0.2),
]


def case(seed: int = 0, b: int = 4, s: int = 6):
    """log-probs, entropies, mask and every extra that one of the losses asks for."""
    g = torch.Generator().manual_seed(seed)
    log_prob = (-3 * torch.rand(b, s, generator=g, dtype=torch.float64)).requires_grad_()
    entropy = (2 * torch.rand(b, s, generator=g, dtype=torch.float64)).requires_grad_()
    mask = torch.rand(b, s, generator=g) > 0.3
    mask[:, 0] = True
    extras = {
        "advantage": torch.randn(b, 1, generator=g, dtype=torch.float64),
        "behavior_log_prob": log_prob.detach() + 0.1 * torch.randn(b, s, generator=g, dtype=torch.float64),
        "reference_log_prob": log_prob.detach() + 0.3 * torch.randn(b, s, generator=g, dtype=torch.float64),
        "off_policy": torch.tensor([[0.0], [1.0]] * (b // 2)),
        "correct": torch.tensor([[1.0], [1.0], [0.0], [0.0]] * (b // 4)),
    }
    return log_prob, entropy, mask, extras, Totals(int(mask.sum()) + 5, b + 1)  # other ranks have five tokens, one sequence


def weight(how: str, mask: torch.Tensor, i: int, totals: Totals) -> float:
    """Of a token of sequence i, from what the aggregation's name says."""
    return {
        "token_mean": 1 / totals.tokens,
        "seq_mean_token_sum_norm": 1 / (totals.sequences * CONSTANT),
        "seq_mean_token_mean": 1 / (totals.sequences * max(int(mask[i].sum()), 1)),
    }[how]


def check(loss, by_token, seed: int = 0, how: str = "token_mean") -> None:
    """`by_token(i, j, log p, H, sequence's mean H, extras)` gives (value, gradient by log p, gradient by H) of token j of i."""
    log_prob, entropy, mask, extras, totals = case(seed)
    value, metrics = loss(log_prob, entropy, mask, extras, totals)
    value.backward()
    expected, by_log_prob, by_entropy = 0.0, torch.zeros_like(log_prob), torch.zeros_like(entropy)
    for i, j in mask.nonzero().tolist():
        mean_entropy = sum(entropy[i, k].item() for k in range(mask.shape[1]) if mask[i, k]) / int(mask[i].sum())
        w = weight(how, mask, i, totals)
        v, dp, dh = by_token(i, j, log_prob[i, j].item(), entropy[i, j].item(), mean_entropy, extras)
        expected += w * v
        by_log_prob[i, j], by_entropy[i, j] = w * dp, w * dh
    assert value.item() == pytest.approx(expected, rel=1e-6)
    torch.testing.assert_close(log_prob.grad, by_log_prob, rtol=1e-6, atol=1e-12)
    found = entropy.grad if entropy.grad is not None else torch.zeros_like(entropy)
    torch.testing.assert_close(found, by_entropy, rtol=1e-6, atol=1e-12)
    assert set(metrics) == set(loss.metrics)


@pytest.mark.parametrize("how", AGGREGATIONS)
def test_luffys_shaped_term_is_minus_advantage_times_p_over_p_plus_gamma(how):
    def by_token(i, j, lp, h, mean_h, extras):
        p, a = math.exp(lp), extras["advantage"][i].item()
        return -a * p / (p + 0.1), -a * 0.1 * p / (p + 0.1) ** 2, 0.0

    check(OffPolicyLoss("shaped", 0.1, how, CONSTANT), by_token, how=how)


def test_srfts_ratio_has_behaviour_probability_1_and_no_clip():
    def by_token(i, j, lp, h, mean_h, extras):
        value = -extras["advantage"][i].item() * math.exp(lp)
        return value, value, 0.0

    check(OffPolicyLoss("ratio"), by_token)


def test_dymes_term_has_the_gradient_of_a_ratio_of_1():
    def by_token(i, j, lp, h, mean_h, extras):
        a = extras["advantage"][i].item()
        return -a * lp, -a, 0.0

    check(OffPolicyLoss("log_prob"), by_token)


@pytest.mark.parametrize("how", AGGREGATIONS)
def test_rollouts_and_demonstrations_share_one_denominator(how):
    def by_token(i, j, lp, h, mean_h, extras):
        a = extras["advantage"][i].item()
        if i % 2:  # a demonstration
            p = math.exp(lp)
            return -a * p / (p + 0.1) - 0.02 * h, -a * 0.1 * p / (p + 0.1) ** 2, -0.02
        return -a - 0.02 * h, -a, -0.02  # the ratio to the present policy is 1

    loss = MixedPolicyLoss(PolicyLoss(aggregation=how, constant=CONSTANT, entropy_coef=0.02))
    check(loss, by_token, how=how)


def test_the_two_parts_that_are_logged_add_up_to_the_loss():
    log_prob, entropy, mask, extras, _ = case(1)
    totals = Totals(int(mask.sum()), len(mask))
    for how in AGGREGATIONS:
        loss = MixedPolicyLoss(PolicyLoss(aggregation=how, constant=CONSTANT))
        value, metrics = loss(log_prob, entropy, mask, extras, totals)
        parts = sum((total / count).item() for total, count in (metrics["loss/rl"], metrics["loss/off_policy"]))
        assert parts == pytest.approx(value.item(), rel=1e-6)


def test_phi_weighs_by_p_times_1_minus_p_without_gradient():
    def by_token(i, j, lp, h, mean_h, extras):
        phi = math.exp(lp) * (1 - math.exp(lp))
        return -phi * lp, -phi, 0.0

    check(WeightedNLL("phi"), by_token)


def test_w_sft_is_half_of_exp_minus_the_sequences_entropy_without_gradient():
    def by_token(i, j, lp, h, mean_h, extras):
        w = 0.5 * math.exp(-mean_h)
        return -w * lp, -w, 0.0

    check(WeightedNLL("entropy", 0.5), by_token)


@pytest.mark.parametrize("how", AGGREGATIONS)
def test_own_correct_responses_count_w_rl_and_wrong_ones_minus_1(how):
    def by_token(i, j, lp, h, mean_h, extras):
        w = 0.1 * math.exp(mean_h) if i in (0, 1) else -1.0
        return -w * lp - 0.03 * h, -w, -0.03

    check(SelfImitationLoss(0.1, "log_prob", how, CONSTANT, 0.03), by_token, how=how)


def test_the_bounded_forms_of_srfts_own_term():
    def by_prob(i, j, lp, h, mean_h, extras):
        w = 0.1 * math.exp(mean_h) if i in (0, 1) else -1.0
        return -w * math.exp(lp), -w * math.exp(lp), 0.0

    def by_ratio(i, j, lp, h, mean_h, extras):
        w = 0.1 * math.exp(mean_h) if i in (0, 1) else -1.0
        return -w, -w, 0.0

    check(SelfImitationLoss(form="prob"), by_prob)
    check(SelfImitationLoss(form="ratio"), by_ratio)


def test_only_the_papers_form_of_the_negative_part_is_unbounded_below():
    mask, extras = torch.ones(1, 2, dtype=torch.bool), {"correct": torch.zeros(1, 1)}
    entropy = torch.zeros(1, 2)

    def at(form: str, log_prob: float) -> float:
        return SelfImitationLoss(form=form)(torch.full((1, 2), log_prob), entropy, mask, extras, Totals(2, 1))[0].item()

    assert at("log_prob", -1000.0) == -1000.0
    assert at("prob", -1000.0) == 0.0


def test_the_anchor_is_the_k3_estimate_of_the_kl():
    def by_token(i, j, lp, h, mean_h, extras):
        back = extras["reference_log_prob"][i, j].item() - lp
        return -lp + 0.2 * (math.exp(back) - 1 - back), -1 + 0.2 * (1 - math.exp(back)), 0.0

    check(AnchoredNLL(0.2), by_token)


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: f"{type(loss).__name__}_{getattr(loss, 'form', '')}")
def test_any_split_into_micro_batches_gives_the_loss_of_the_whole(loss):
    log_prob, entropy, mask, extras, totals = case(2, b=8)
    whole = loss(log_prob, entropy, mask, extras, totals)[0]
    parts = [
        loss(log_prob[i:j], entropy[i:j], mask[i:j], {k: v[i:j] for k, v in extras.items()}, totals)[0]
        for i, j in ((0, 1), (1, 5), (5, 8))
    ]
    assert sum(parts).item() == pytest.approx(whole.item(), rel=1e-6)


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: f"{type(loss).__name__}_{getattr(loss, 'form', '')}")
def test_no_trained_token_gives_an_exact_zero_that_carries_the_graph(loss):
    log_prob, entropy, mask, extras, _ = case(3)
    with torch.no_grad():
        log_prob[0, 0] = -torch.inf  # what stands at untrained positions never enters
    value, metrics = loss(log_prob, entropy, torch.zeros_like(mask), extras, Totals(0, 0))
    value.backward()
    assert value.item() == 0.0
    assert log_prob.grad is not None
    assert not log_prob.grad.any()
    assert all(torch.isfinite(total) and not count for total, count in metrics.values())
