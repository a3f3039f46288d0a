"""The comparison of both sides' log-probs after a sync."""

import math

import pytest

from nemo_amft.rollout.probe import probe
from nemo_amft.types import Completion, SamplingParams

PROMPTS = [(1, 2, 3), (4,)]


class _Engine:
    def generate(self, requests, params):
        assert [r.prompt_token_ids for r in requests] == PROMPTS
        assert all(r.seed is not None for r in requests)
        return [Completion((7, 8), (-1.0, -2.0), True), Completion((9,), (-3.0,), False)]


def _policy(shift: float):
    def log_probs(sequences):
        assert [s.tokens for s in sequences] == [(1, 2, 3, 7, 8), (4, 9)]
        return [[99.0, 99.0, 99.0, -1.0 + shift, -2.0], [99.0, -3.0 - 2 * shift]]  # 99: not trained, to be ignored

    return log_probs


def test_differences_are_over_drawn_tokens_only():
    found = probe(_Engine(), _policy(0.03), PROMPTS, SamplingParams(2), tolerance=0.031)
    assert found == {"mean_abs_diff": pytest.approx(0.03), "max_abs_diff": pytest.approx(0.06)}


@pytest.mark.parametrize("shift", [0.5, math.inf])
def test_disagreement_stops_the_run_and_says_what_differs(shift):
    with pytest.raises(RuntimeError, match=r"disagree on the log-probs of 3 freshly drawn tokens.*old weights"):
        probe(_Engine(), _policy(shift), PROMPTS, SamplingParams(2), tolerance=0.02)


def test_it_says_whose_log_probs_are_no_numbers():
    class Broken(_Engine):
        def generate(self, requests, params):
            return [Completion((7, 8), (-1.0, math.nan), True), Completion((9,), (math.nan,), False)]

    with pytest.raises(RuntimeError, match="2 of 3 log-probs of the policy are NaN"):
        probe(_Engine(), _policy(math.nan), PROMPTS, SamplingParams(2), tolerance=0.02)
    with pytest.raises(RuntimeError, match="2 of 3 log-probs of the rollout engine are NaN"):
        probe(Broken(), _policy(0.0), PROMPTS, SamplingParams(2), tolerance=0.02)
