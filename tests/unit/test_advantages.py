"""Advantages against their formulas."""

from __future__ import annotations

import statistics

import pytest
import torch

from nemo_amft.algorithms.advantages import gae, group_advantages, leave_one_out


def test_group_advantages_follow_their_formulas():
    r = [1.0, 0.0, 0.0, 1.0, 1.0]
    mean, std = statistics.mean(r), statistics.stdev(r)
    assert group_advantages(r, "grpo") == pytest.approx([(x - mean) / (std + 1e-6) for x in r])
    assert group_advantages(r, "dr_grpo") == pytest.approx([x - mean for x in r])
    others = [(sum(r) - x) / 4 for x in r]
    assert group_advantages(r, "rloo") == pytest.approx([x - o for x, o in zip(r, others, strict=True)])


@pytest.mark.parametrize("how", ["grpo", "dr_grpo", "rloo"])
@pytest.mark.parametrize("reward", [0.0, 0.1, 1.0])
def test_a_group_of_equal_rewards_teaches_nothing(how, reward):
    assert group_advantages([reward] * 4, how) == [0.0] * 4


def test_leave_one_out_needs_two():
    with pytest.raises(ValueError, match="at least 2"):
        leave_one_out([1.0])


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 1.0), (0.9, 0.95), (1.0, 0.0)])
def test_gae_is_the_sum_of_discounted_residuals(gamma, lam):
    g = torch.Generator().manual_seed(0)
    rewards, values = torch.randn(6, generator=g), torch.randn(6, generator=g)
    advantages, returns = gae(rewards, values, gamma, lam)
    following = torch.cat([values[1:], torch.zeros(1)])
    residual = rewards + gamma * following - values
    expected = [sum((gamma * lam) ** k * residual[i + k] for k in range(6 - i)) for i in range(6)]
    torch.testing.assert_close(advantages, torch.stack(expected))
    torch.testing.assert_close(returns, advantages + values)


def test_with_gamma_and_lambda_one_the_return_is_the_reward_to_come():
    rewards = torch.tensor([0.0, 0.0, 1.0])
    _, returns = gae(rewards, torch.tensor([5.0, -3.0, 2.0]), 1.0, 1.0)
    torch.testing.assert_close(returns, torch.ones(3))
