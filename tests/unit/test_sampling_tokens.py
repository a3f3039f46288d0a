"""Drawing tokens from logits."""

import pytest
import torch

from nemo_amft.rollout.sampling import sample, uniforms
from nemo_amft.types import SamplingParams

LOGITS = torch.tensor([[2.0, -1.0, 0.5, 1.5, -torch.inf]])
DRAWS = 4001
EVENLY = (torch.arange(DRAWS, dtype=torch.float64) + 0.5) / DRAWS


def _frequencies(**params) -> torch.Tensor:
    tokens, _ = sample(LOGITS.expand(DRAWS, -1), EVENLY, SamplingParams(1, **params))
    return tokens.bincount(minlength=5) / DRAWS


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_frequencies_are_the_softmax_at_the_temperature(temperature):
    torch.testing.assert_close(_frequencies(temperature=temperature), (LOGITS[0] / temperature).softmax(-1), atol=1e-3, rtol=0)


def test_top_k_and_top_p_keep_the_most_probable_and_renormalise():
    prob = LOGITS[0].softmax(-1)  # 0.51, 0.03, 0.11, 0.31, 0.0(masked)
    expected = torch.where(prob >= prob[3], prob, 0.0)
    expected /= expected.sum()
    torch.testing.assert_close(_frequencies(top_k=2), expected, atol=1e-3, rtol=0)
    torch.testing.assert_close(_frequencies(top_p=0.6), expected, atol=1e-3, rtol=0)
    assert _frequencies(top_p=0.5)[0] == 1.0
    # top-p applies to what top-k has left: 0.62 and 0.38 of two
    assert _frequencies(top_k=2, top_p=0.6)[0] == 1.0


def test_log_probs_are_those_before_truncation():
    _, log_prob = sample(LOGITS, torch.zeros(1, dtype=torch.float64), SamplingParams(1, temperature=0.7, top_k=1))
    torch.testing.assert_close(log_prob, (LOGITS / 0.7).log_softmax(-1))


def test_temperature_zero_is_the_argmax_with_log_probs_at_one():
    token, log_prob = sample(LOGITS, torch.tensor([0.999], dtype=torch.float64), SamplingParams(1, temperature=0.0))
    assert token.item() == 0
    torch.testing.assert_close(log_prob, LOGITS.log_softmax(-1))


def test_the_ends_of_the_interval_never_draw_an_impossible_token():
    logits = torch.tensor([[-torch.inf, 0.0, -torch.inf, 0.0, -torch.inf]]).expand(2, -1)
    ends = torch.tensor([0.0, 1.0 - 2**-53], dtype=torch.float64)
    assert sample(logits, ends, SamplingParams(1))[0].tolist() == [1, 3]


def test_uniforms_belong_to_their_seed_alone():
    together = uniforms([5, 6, 2**63 - 1], 7)
    assert together.unique().numel() == 21
    assert torch.equal(uniforms([6], 7)[0], together[1])
    # A longer limit does not change what comes first.
    assert torch.equal(uniforms([6], 20)[0, :7], together[1])


def test_logits_that_are_no_numbers_draw_a_token_of_the_vocabulary_whose_log_prob_shows_it():
    logits = torch.full((2, 5), torch.nan)
    tokens, log_prob = sample(logits, torch.tensor([0.0, 0.999], dtype=torch.float64), SamplingParams(1))
    assert ((tokens >= 0) & (tokens < 5)).all()
    assert log_prob.isnan().all()
