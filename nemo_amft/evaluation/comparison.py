"""Whether one model's scores differ from another's on the same problems.

Paired, problem by problem: problems differ in difficulty far more than models do, and the pairing takes that out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from nemo_amft.evaluation.metrics import RESAMPLES, SEED, Interval, percentiles, resampled_means

MAX_EXACT = 14
"""Differing problems up to which all sign patterns are counted, instead of a sample of them."""
PERMUTATIONS = 20_000


def compare_scores(a: Sequence[float], b: Sequence[float]) -> dict[str, Any]:
    """B - A on one benchmark; a[i] and b[i] are the scores of problem i.

    Returns the mean difference, its 95% interval (paired bootstrap), `p_permutation` (two-sided, signs of the differences
    flipped at random), `p_sign` (two-sided, exact: only who is better at a problem counts), and wins of B, wins of A, ties.
    """
    differences = np.asarray(b, dtype=float) - np.asarray(a, dtype=float)
    wins, losses = int((differences > 0).sum()), int((differences < 0).sum())
    return {
        "problems": len(differences),
        "mean_a": float(np.mean(a)),
        "mean_b": float(np.mean(b)),
        "difference": float(differences.mean()),
        "interval": bootstrap_interval([differences]),
        "p_permutation": permutation_p([differences]),
        "p_sign": sign_p(wins, losses),
        "wins": wins,
        "losses": losses,
        "ties": len(differences) - wins - losses,
    }


def compare_averages(pairs: Sequence[tuple[Sequence[float], Sequence[float]]]) -> dict[str, Any]:
    """B - A of the means of benchmark means; problems are resampled, and signs flipped, within each benchmark."""
    differences = [np.asarray(b, dtype=float) - np.asarray(a, dtype=float) for a, b in pairs]
    mean_a, mean_b = (float(np.mean([np.mean(pair[side]) for pair in pairs])) for side in (0, 1))
    return {
        "problems": sum(map(len, differences)),
        "mean_a": mean_a,
        "mean_b": mean_b,
        "difference": float(np.mean([d.mean() for d in differences])),
        "interval": bootstrap_interval(differences),
        "p_permutation": permutation_p(differences),
    }


def bootstrap_interval(benchmarks: Sequence[np.ndarray]) -> Interval:
    """95% percentile interval of the mean of the benchmarks' mean differences."""
    generator = np.random.default_rng(SEED)
    means = np.zeros(RESAMPLES)
    for differences in benchmarks:
        means += resampled_means(differences, generator) / len(benchmarks)
    return percentiles(means)


def permutation_p(benchmarks: Sequence[np.ndarray]) -> float:
    """Two-sided p of the mean of mean differences, if A and B could change places at every problem.

    Exact for few differing problems. Else of PERMUTATIONS random patterns, the one found counted among them, so never 0.
    """
    weights = np.concatenate([d / (len(d) * len(benchmarks)) for d in benchmarks])
    weights = weights[weights != 0]
    n = len(weights)
    if n == 0:
        return 1.0
    found = abs(weights.sum()) * (1 - 1e-9)  # patterns as extreme as this one may round below it
    if n <= MAX_EXACT:
        signs = 1 - 2 * ((np.arange(2**n)[:, None] >> np.arange(n)) & 1)
        return float((np.abs(signs @ weights) >= found).mean())
    generator = np.random.default_rng(SEED)
    rows = max(1, 2_000_000 // n)
    extreme = 0
    for start in range(0, PERMUTATIONS, rows):
        flips = generator.integers(0, 2, size=(min(rows, PERMUTATIONS - start), n), dtype=np.int8)
        extreme += int((np.abs(weights.sum() - 2 * (flips @ weights)) >= found).sum())
    return (extreme + 1) / (PERMUTATIONS + 1)


def sign_p(wins: int, losses: int) -> float:
    """Two-sided exact p of the sign test: problems where both score alike say nothing."""
    n, fewer = wins + losses, min(wins, losses)
    tail = sum(math.comb(n, i) for i in range(fewer + 1))
    return min(1.0, 2 * tail / 2**n)
