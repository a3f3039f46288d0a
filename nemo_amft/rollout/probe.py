"""Does the rollout engine hold the policy's weights? An engine that silently keeps old ones ruins a run unnoticed."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from nemo_amft.types import Request, RolloutEngine, SamplingParams, TokenSequence


def probe(
    engine: RolloutEngine,
    policy_log_probs: Callable[[list[TokenSequence]], Sequence[Sequence[float]]],
    prompts: Sequence[Sequence[int]],
    params: SamplingParams,
    tolerance: float,
) -> dict[str, float]:
    """Draw responses to `prompts` and compare the engine's log-probs of their tokens with the policy's.

    Every rank calls it, and gets the same result.

    Args:
        policy_log_probs: the policy's log-probs of every token of each sequence, at the sampling temperature; what it gives for
            tokens that are not trained is ignored.
        params: without top-p and top-k, which the policy knows nothing of. A temperature of 0 is compared at temperature 1.
        tolerance: largest mean absolute difference, in nats, that is accepted.

    Returns:
        mean_abs_diff and max_abs_diff over the tokens drawn.

    Raises:
        RuntimeError: the sides disagree by more than `tolerance`, or either gives a log-prob that is not a number.
    """
    completions = engine.generate([Request(tuple(prompt), seed) for seed, prompt in enumerate(prompts)], params)
    sequences = [
        TokenSequence(
            tokens=(*prompt, *completion.token_ids),
            trained=(False,) * len(prompt) + (True,) * len(completion.token_ids),
            behavior_log_probs=(0.0,) * len(prompt) + completion.log_probs,
        )
        for prompt, completion in zip(prompts, completions, strict=True)
    ]
    pairs = [
        (float(ours), theirs)
        for sequence, log_probs in zip(sequences, policy_log_probs(sequences), strict=True)
        for ours, theirs, trained in zip(log_probs, sequence.behavior_log_probs, sequence.trained, strict=True)
        if trained
    ]
    for side, values in (("policy", [ours for ours, _ in pairs]), ("rollout engine", [theirs for _, theirs in pairs])):
        if bad := sum(math.isnan(value) for value in values):
            raise RuntimeError(f"probe of the weight sync: {bad} of {len(values)} log-probs of the {side} are NaN")
    differences = [abs(ours - theirs) for ours, theirs in pairs]
    mean, largest = sum(differences) / len(differences), max(differences)
    if not mean <= tolerance:  # in this form infinity less infinity fails too
        raise RuntimeError(
            f"rollout engine and policy disagree on the log-probs of {len(differences)} freshly drawn tokens: mean absolute "
            f"difference {mean:.3g} nats, largest {largest:.3g}, expected a mean of at most {tolerance:g} "
            "(rollout.probe_tolerance). Likely causes: the engine kept old weights (the sync failed or was not called); "
            "it reads another model config than the trainer (rope, vocabulary); its precision is too low for the tolerance"
        )
    return {"mean_abs_diff": mean, "max_abs_diff": largest}
