"""Advantages as pure functions. A group is the N responses to one prompt."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def group_advantages(rewards: Sequence[float], how: str, floor: float = 0.0) -> list[float]:
    """Advantage of each response of one group.

    grpo: (r - mean) / (std + 1e-6), the sample standard deviation (arXiv 2402.03300, section 4.1.2), r - mean where that is
    below `floor`; all equal rewards give 0. dr_grpo: r - mean (arXiv 2503.20783). rloo: r - mean of the other responses (arXiv
    2402.14740).
    """
    if how == "rloo":
        return leave_one_out(rewards)
    if _all_equal(rewards):
        return [0.0] * len(rewards)
    r = torch.tensor(rewards, dtype=torch.float64)
    centred = r - r.mean()
    if how == "grpo":
        centred = whiten(centred, 0.0, r.std().item() if len(r) > 1 else 0.0, floor, eps=1e-6)
    elif how != "dr_grpo":
        raise ValueError(f"unknown group advantage {how!r}")
    return centred.tolist()


def whiten(values: Tensor, mean: float, std: float, floor: float, eps: float = 1e-8) -> Tensor:
    """(x - mean) / (std + eps); where `std` is below `floor`, x - mean alone: differences as small as that are noise (of a
    critic, of a reward model), which division would make as large as a signal."""
    return (values - mean) / (std + eps) if std > 0.0 and std >= floor else values - mean


def leave_one_out(rewards: Sequence[float]) -> list[float]:
    """r_i minus the mean of the other rewards: an unbiased baseline, since it does not depend on response i."""
    n, total = len(rewards), sum(rewards)
    if n < 2:
        raise ValueError("a leave-one-out baseline needs at least 2 responses a prompt")
    return [0.0] * n if _all_equal(rewards) else [r - (total - r) / (n - 1) for r in rewards]


def _all_equal(rewards: Sequence[float]) -> bool:
    """Such a group says nothing. Its differences are rounding errors, which a normalised meta-gradient would take for a
    direction."""
    return min(rewards) == max(rewards)


def gae(rewards_T: Tensor, values_T: Tensor, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimates of one response (arXiv 1506.02438, Eq. 16). Returns (advantages [T], returns [T]).

    The response ends an episode: the value after the last token is 0. `values_T[i]` is the value of the state in which token
    i is chosen.
    """
    running, following, found = 0.0, 0.0, []
    for reward, value in zip(reversed(rewards_T.tolist()), reversed(values_T.tolist()), strict=True):
        running = reward + gamma * following - value + gamma * lam * running
        following = value
        found.append(running)
    advantages = torch.tensor(found[::-1], dtype=values_T.dtype)
    return advantages, advantages + values_T
