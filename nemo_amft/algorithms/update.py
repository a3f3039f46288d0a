"""One policy update from weighted loss terms, with no more passes and buffers than the algorithm needs.

Gradients are linear in the weights, so the first term runs with weight 1 (its forward pass also gives the entropy the
controller wants), the controller then says the weights, the buffer is scaled by the first term's, and the other terms
accumulate on top.
Only when the controller wants the difference of the terms' gradients are they reduced apart; that costs one more buffer of this
rank's own shard for the one step.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from nemo_amft.algorithms.meta_gradient import InnerProduct, Shards, split_gradients
from nemo_amft.algorithms.methods.base import Term
from nemo_amft.models.policy import Policy
from nemo_amft.observe.timers import PhaseTimers
from nemo_amft.parallel.reductions import means


@dataclass
class UpdateResult:
    metrics: dict[str, float] = field(default_factory=dict)
    weights: dict[str, float] = field(default_factory=dict)
    difference: Shards | None = None
    """g_SFT - g_RL of this update, whichever ran first, if it was asked for."""
    clipped: Shards | None = None
    """The gradient the optimiser took; valid until the buffer is emptied."""
    grad_norm: float = 0.0


def update_policy(
    policy: Policy,
    terms: list[Term],
    weigh: Callable[[dict[str, float]], dict[str, float]],
    timers: PhaseTimers,
    *,
    temperature: float,
    apart: InnerProduct | None = None,
) -> UpdateResult:
    """Accumulate `terms` (each already cut to this rank's share) and step. `weigh` gets the first term's metrics, returns all
    weights.

    With `apart` the two terms' gradients are reduced apart and their difference is left in the result (where both have tokens).
    """
    result = UpdateResult()

    def weight_of(term: Term) -> float:
        return result.weights.get(term.name, 1.0) * term.weight

    first, *rest = [term for term in terms if term.batch.total_tokens] or terms[:1]
    # Only where mu and 1 - mu are all that weighs the two is the difference the total's derivative by mu.
    keep_apart = apart is not None and {t.name: t.weight for t in (first, *rest)} == {"sft": 1.0, "rl": 1.0}

    def run(term: Term, weight: float, last: bool) -> None:
        with timers(term.name):
            sums = policy.accumulate_term(
                term.batch, term.loss, weight, temperature=temperature if term.on_policy else 1.0, last=last
            )
        sums[f"padding/{term.name}"] = sums.pop("padding")
        result.metrics |= means(sums)

    policy.zero_gradients()
    run(first, 1.0, last=keep_apart or not rest)
    kept = _finished_copy(policy) if keep_apart else None
    result.weights = weigh(result.metrics)
    # With nothing to come, an overlapped reduction has begun already, so the scale goes onto the finished gradients below.
    if rest and not keep_apart:
        policy.scale_gradients(weight_of(first))
    for i, term in enumerate(rest):
        run(term, 1.0 if keep_apart else weight_of(term), last=i == len(rest) - 1)
    with timers("optimizer"):
        policy.finish_gradients()
        gradients = policy.main_gradients()
        alone = 1.0 if rest else weight_of(first)
        if alone != 1.0:  # warm-up's is 1: no pass over the gradients for that
            for gradient in gradients:
                gradient.mul_(alone)
        if kept is not None and apart is not None:
            result.metrics |= _compare(apart, {first.name: kept, rest[0].name: gradients})
            result.difference = split_gradients(kept, gradients, result.weights[first.name])
            if first.name != "sft":
                for d in result.difference:
                    d.neg_()
        result.grad_norm = policy.step()
        result.clipped = gradients
    return result


def _finished_copy(policy: Policy) -> Shards:
    """Reduce what the first term accumulated, copy this rank's shard in fp32 and empty the buffer."""
    policy.finish_gradients()
    kept = [gradient.float().clone() for gradient in policy.main_gradients()]
    policy.zero_gradients()
    return kept


def _compare(product: InnerProduct, gradients: dict[str, Shards]) -> dict[str, float]:
    """Norms of g_SFT and g_RL and the cosine between them, by one all-reduce."""
    sft, rl = gradients["sft"], gradients["rl"]
    dot, ss, rr = product((sft, rl), (sft, sft), (rl, rl))
    norms = math.sqrt(ss) * math.sqrt(rr)
    cosine = {"meta/cosine": dot / norms} if norms > 0.0 else {}
    return {"grad_norm/sft": math.sqrt(ss), "grad_norm/rl": math.sqrt(rr), **cosine}
