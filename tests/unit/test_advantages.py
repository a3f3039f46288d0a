"""Advantages against their formulas."""

from __future__ import annotations

import statistics

import pytest
import torch

from nemo_amft.algorithms.advantages import gae, group_advantages, leave_one_out, whiten


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


def test_differences_below_the_floor_are_noise_and_are_not_blown_up_to_advantages_of_one():
    """As a critic's, where all rewards are equal, or a reward model's."""
    noise = [0.7 + 3e-4, 0.7 - 3e-4, 0.7, 0.7]
    assert group_advantages(noise, "grpo", floor=0.01) == pytest.approx([3e-4, -3e-4, 0.0, 0.0])
    assert max(group_advantages(noise, "grpo", floor=0.0)) > 1.0
    signal = [0.7, 0.7, 0.7, 0.6]
    assert group_advantages(signal, "grpo", floor=0.01) == group_advantages(signal, "grpo")
    values = torch.tensor([1.0, 3.0])
    torch.testing.assert_close(whiten(values, 2.0, 1.0, floor=1.0), torch.tensor([-1.0, 1.0]))
    torch.testing.assert_close(whiten(values, 2.0, 1.0, floor=1.1), values - 2.0)
    torch.testing.assert_close(whiten(torch.full((2,), 0.5), 0.5, 0.0, floor=0.0), torch.zeros(2))


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
