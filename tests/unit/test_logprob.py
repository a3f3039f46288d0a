"""The chunked log-prob and entropy against plain torch, and the memory it is chunked for."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from nemo_amft.models.logprob import vocab_parallel_log_prob_and_entropy

VOCABULARY, PADDED, HIDDEN = 13, 16, 6


def plain(hidden, weight, targets, temperature):
    log_p = (hidden @ weight[:VOCABULARY].t() / temperature).log_softmax(-1)
    return log_p.gather(1, targets[:, None])[:, 0], -(log_p.exp() * log_p).sum(-1)


def inputs(num_tokens: int, dtype: torch.dtype = torch.float64):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(num_tokens, HIDDEN, dtype=dtype, generator=generator).requires_grad_()
    # Rows of padding are large on purpose: entering the softmax they would win it.
    weight = torch.randn(PADDED, HIDDEN, dtype=dtype, generator=generator)
    weight[VOCABULARY:] *= 100
    targets = torch.randint(VOCABULARY, (num_tokens,), generator=generator)
    return hidden, weight.requires_grad_(), targets


@pytest.mark.parametrize("chunk_tokens", [1, 4, 100])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_values_and_gradients_of_both_outputs_are_plain_torchs(chunk_tokens, temperature):
    hidden, weight, targets = inputs(9)
    options = {"vocab_size": VOCABULARY, "chunk_tokens": chunk_tokens, "temperature": temperature}
    actual = vocab_parallel_log_prob_and_entropy(hidden, weight, targets, **options)
    expected = plain(hidden, weight, targets, temperature)
    coefficients = torch.randn(2, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e, rtol=1e-12, atol=1e-12)
    grads = [torch.autograd.grad((torch.stack(out) * coefficients).sum(), (hidden, weight)) for out in (actual, expected)]
    for a, e in zip(*grads, strict=True):
        torch.testing.assert_close(a, e, rtol=1e-10, atol=1e-12)
    assert not grads[0][1][VOCABULARY:].any(), "padding gets no gradient"


def test_gradients_are_those_of_finite_differences():
    hidden, weight, targets = inputs(5)
    with torch.no_grad():
        weight[VOCABULARY:] /= 100
    torch.autograd.gradcheck(
        lambda h, w: vocab_parallel_log_prob_and_entropy(h, w, targets, vocab_size=VOCABULARY, chunk_tokens=2, temperature=0.8),
        (hidden, weight),
    )


def test_one_output_alone_can_be_differentiated():
    hidden, weight, targets = inputs(5)
    for i in range(2):
        actual = vocab_parallel_log_prob_and_entropy(hidden, weight, targets, vocab_size=VOCABULARY, chunk_tokens=2)[i]
        expected = plain(hidden, weight, targets, 1.0)[i]
        a, e = (torch.autograd.grad(out.sum(), hidden)[0] for out in (actual, expected))
        torch.testing.assert_close(a, e)


def test_no_token_gives_nothing_and_zero_gradients():
    hidden, weight, targets = inputs(0)
    log_prob, entropy = vocab_parallel_log_prob_and_entropy(hidden, weight, targets, vocab_size=VOCABULARY, chunk_tokens=4)
    assert log_prob.shape == entropy.shape == (0,)
    (log_prob.sum() + entropy.sum()).backward()
    assert hidden.grad.shape == (0, HIDDEN)
    assert weight.grad.shape == weight.shape
    assert not weight.grad.any()


def test_bf16_gives_fp32_outputs_and_gradients_in_the_inputs_dtype():
    hidden, weight, targets = inputs(9, torch.bfloat16)
    log_prob, entropy = vocab_parallel_log_prob_and_entropy(hidden, weight, targets, vocab_size=VOCABULARY, chunk_tokens=4)
    assert log_prob.dtype == entropy.dtype == torch.float32
    (log_prob.sum() + entropy.sum()).backward()
    assert hidden.grad.dtype == weight.grad.dtype == torch.bfloat16


class LargestTensor(TorchDispatchMode):
    """Records the number of elements of the largest tensor any operation returns."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self.elements = max(self.elements, leaf.numel())
        return result


def test_the_logits_of_all_tokens_never_exist():
    num_tokens, hidden_size, vocabulary, chunk = 512, 8, 1000, 32
    hidden = torch.randn(num_tokens, hidden_size).requires_grad_()
    weight = torch.randn(vocabulary, hidden_size).requires_grad_()
    with LargestTensor() as largest:
        out = vocab_parallel_log_prob_and_entropy(
            hidden, weight, torch.randint(vocabulary, (num_tokens,)), vocab_size=vocabulary, chunk_tokens=chunk
        )
        torch.stack(out).sum().backward()
    assert largest.elements == chunk * vocabulary < num_tokens * vocabulary
