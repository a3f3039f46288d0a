"""Accuracy of the present policy on held-out problems."""

from __future__ import annotations

import math
from collections.abc import Sequence

from nemo_amft.algorithms.methods.base import Group
from nemo_amft.algorithms.sampling import Sampler
from nemo_amft.types import Example


def evaluate(
    sampler: Sampler,
    name: str,
    examples: Sequence[Example],
    samples: int,
    max_new_tokens: int,
    temperature: float,
    sources: Sequence[str] = (),
) -> tuple[dict[str, float], list[Group]]:
    """Mean accuracy over `samples` responses a problem, with its standard error over problems; that of each of the `sources`
    beside it.

    The seeds belong to (run seed, `name`, problem, sample) and not to the step, so that two evaluations differ by the policy
    alone.
    """
    groups = sampler.roll_out(name, 0, examples, samples, max_new_tokens, temperature)
    scores = [sum(s.verdict.correct for s in group.samples) / len(group.samples) for group in groups]
    n = max(len(scores), 1)
    mean = sum(scores) / n
    variance = sum((x - mean) ** 2 for x in scores) / max(n - 1, 1)
    drawn = [sample for group in groups for sample in group.samples]
    metrics = {
        f"{name}/accuracy": mean,
        f"{name}/standard_error": math.sqrt(variance / n),
        f"{name}/problems": float(len(scores)),
        f"{name}/truncated_fraction": sum(not s.finished for s in drawn) / max(len(drawn), 1),
        f"{name}/reward_timeout": float(sum(s.verdict.status == "timeout" for s in drawn)),
        f"{name}/reward_error": float(sum(s.verdict.status == "error" for s in drawn)),
    }
    for source in sources:
        mine = [score for score, group in zip(scores, groups, strict=True) if group.example.source == source]
        if mine:
            metrics[f"{name}/accuracy/{source}"] = sum(mine) / len(mine)
    sampler.failures()  # counted above, under the set's name, and not to be counted again by the training step that follows
    for number in dict.fromkeys(key for sample in drawn for key in sample.verdict.numbers):
        values = [sample.verdict.numbers[number] for sample in drawn if number in sample.verdict.numbers]
        metrics[f"{name}/{number}"] = sum(values) / len(values)
    return metrics, groups
