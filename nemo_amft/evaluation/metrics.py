"""Estimates from c correct of n responses to each problem, with 95% confidence intervals.

Intervals are over problems: a benchmark is a sample of the problems one might ask. One response a problem: Wilson's interval of
a share. Several, or pass@k: the percentile bootstrap over problems, which knows that the responses to one problem go together.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

LEVEL = 0.95
Z = 1.959963984540054
"""The normal distribution's quantile at 1 - (1 - LEVEL) / 2."""
RESAMPLES = 10_000
SEED = 20250805
"""Of the bootstrap and of the permutation test: the same answers give the same interval."""

Interval = tuple[float, float]


def pass_at_k(n: int, c: int, k: int) -> float:
    """Chance that at least one of k responses, drawn from n of which c are correct, is correct: 1 - C(n-c, k) / C(n, k).

    Unbiased for the chance that one of k fresh responses is correct (Chen et al., arXiv 2107.03374, Eq. 1).
    """
    assert 0 <= c <= n, (n, c)
    assert 1 <= k <= n, (n, k)
    return 1.0 - math.comb(n - c, k) / math.comb(n, k)


def wilson(successes: float, n: int) -> Interval:
    """Wilson's 95% interval of a share of n."""
    assert n > 0
    p, z2 = successes / n, Z * Z
    centre = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = Z / (1 + z2 / n) * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def mean_interval(scores: Sequence[float]) -> Interval:
    """95% interval of the mean of per-problem scores in [0, 1].

    Wilson's where every score is 0 or 1. That covers scores that are all 0, or all 1, whose bootstrap would have no width.
    """
    if all(score in (0.0, 1.0) for score in scores):
        return wilson(sum(scores), len(scores))
    return percentiles(resampled_means(np.asarray(scores, dtype=float), np.random.default_rng(SEED)))


def average_interval(benchmarks: Sequence[Sequence[float]]) -> Interval:
    """95% interval of the mean of benchmark means, from each one's own interval.

    Its distances from the mean are the root of the sum of squares of theirs, each side for itself (MOVER: Zou and Donner 2008).
    A bootstrap would have no width where the benchmarks' scores are all 0, and theirs have.
    """
    low = high = 0.0
    means = [sum(scores) / len(scores) for scores in benchmarks]
    for scores, mean in zip(benchmarks, means, strict=True):
        below, above = mean_interval(scores)
        low += (mean - below) ** 2
        high += (above - mean) ** 2
    n = len(benchmarks)
    return (sum(means) - math.sqrt(low)) / n, (sum(means) + math.sqrt(high)) / n


def resampled_means(values: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Means of RESAMPLES samples, each of len(values) drawn with replacement. Shape [RESAMPLES]."""
    n = len(values)
    distinct, where = np.unique(values, return_inverse=True)
    if len(distinct) <= 64:  # how often each value is drawn is multinomial: the same law, whatever n
        counts = generator.multinomial(n, np.bincount(where) / n, size=RESAMPLES)
        return counts @ distinct / n
    rows = max(1, 4_000_000 // n)
    parts = [
        values[generator.integers(0, n, size=(min(rows, RESAMPLES - start), n))].mean(axis=1)
        for start in range(0, RESAMPLES, rows)
    ]
    return np.concatenate(parts)


def percentiles(means: np.ndarray) -> Interval:
    """The middle 95% of bootstrap means."""
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def ks(n: int) -> list[int]:
    """The k of pass@k that n responses allow: powers of 2, and n."""
    return sorted({*(2**i for i in range(n.bit_length())), n})
