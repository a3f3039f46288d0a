"""Advantages from the critic, and its own update: the PPO half that needs a value function."""

from __future__ import annotations

import torch

from nemo_amft.algorithms.advantages import gae, whiten
from nemo_amft.algorithms.losses import ValueLoss
from nemo_amft.algorithms.methods.base import Term
from nemo_amft.data.batching import Batch
from nemo_amft.models.critic import Critic
from nemo_amft.parallel.reductions import mean_and_std, means


def add_gae(share: Batch, critic: Critic, term: Term) -> dict[str, float]:
    """Put `old_value`, `returns` and `advantage` per token into this rank's share, by GAE over the response's tokens.

    The response's reward arrives with its last token. Advantages are whitened over the update's global batch where the method
    says so; then advantage/std, before that, and advantage/whitened (0 where it was below method.rl.whiten_floor) are returned.
    """
    assert term.rl is not None
    values = critic.values(share)
    advantages, returns = [], []
    for row, value, reward in zip(share.sequences, values, share.per_sequence["reward"], strict=True):
        where = torch.tensor(row.trained)
        rewards = torch.zeros(row.num_trained)
        if row.num_trained:
            rewards[-1] = reward
        advantage, target = gae(rewards, value[where], term.rl.gamma, term.rl.lam)
        advantages.append(torch.zeros(len(row.tokens)).masked_scatter(where, advantage))
        returns.append(torch.zeros(len(row.tokens)).masked_scatter(where, target))
    metrics = {}
    if term.rl.whiten_advantages:
        floor = term.rl.whiten_floor
        masks = [torch.tensor(row.trained) for row in share.sequences]
        mean, std = mean_and_std([a[m] for a, m in zip(advantages, masks, strict=True)])
        advantages = [torch.where(m, whiten(a, mean, std, floor), 0.0) for a, m in zip(advantages, masks, strict=True)]
        metrics = {"advantage/std": std, "advantage/whitened": float(std >= floor)}
    share.per_token |= {"old_value": values, "returns": returns, "advantage": advantages}
    return metrics


def update_critic(share: Batch, critic: Critic, loss: ValueLoss) -> dict[str, float]:
    """One update of the value function on its own loss (Algorithm 2, line 34). Returns loss/value, explained_variance and
    more."""
    keep = {name: share.per_token[name] for name in ("old_value", "returns")}
    sums, norm = critic.update(Batch(share.sequences, share.total_tokens, share.total_sequences, keep), loss)
    found = means(sums)
    result = {"loss/value": found.get("loss/value", 0.0), "grad_norm/value": norm}
    result["value/clip_fraction"] = found.get("value/clip_fraction", 0.0)
    if "value/returns" in found:
        variance = found["value/returns_squared"] - found["value/returns"] ** 2
        # Share of the returns' variance that the values before the update explain; undefined where all returns are alike.
        if variance > 1e-12:
            result["explained_variance"] = 1.0 - found["value/error_squared"] / variance
        result["value/returns"] = found["value/returns"]
    return result
