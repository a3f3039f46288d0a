"""Shares and micro-batches: nothing lost, masks from lengths, targets shifted by one."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from nemo_amft.data.batching import Batch, balanced_shares, micro_batches, unpad
from nemo_amft.types import TokenSequence

CPU = torch.device("cpu")


def _sequence(prompt: int, response: int, first: int = 1) -> TokenSequence:
    n = prompt + response
    return TokenSequence(tuple(range(first, first + n)), tuple(i >= prompt for i in range(n)))


@given(st.lists(st.integers(1, 50), max_size=40), st.integers(1, 8))
def test_shares_hold_every_sequence_once_in_nearly_equal_numbers(lengths, ranks):
    shares = balanced_shares(lengths, ranks)
    assert sorted(i for share in shares for i in share) == list(range(len(lengths)))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_shares_are_balanced_by_tokens():
    totals = [
        sum([100, 90, 80, 70, 4, 3, 2, 1][i] for i in share) for share in balanced_shares([100, 90, 80, 70, 4, 3, 2, 1], 2)
    ]
    assert max(totals) - min(totals) <= 2


def test_a_micro_batch_predicts_the_next_token_and_masks_by_length_alone():
    # token 0 stands for padding too: the mask must not care
    rows = [TokenSequence((5, 0, 7), (False, True, True)), TokenSequence((8, 9, 0, 0, 3), (False, False, True, True, True))]
    (micro,) = micro_batches(Batch.whole(rows), 4, CPU, length_multiple=3)
    assert micro.tokens.tolist() == [[5, 0, 0, 0, 0, 0], [8, 9, 0, 0, 0, 0]]
    assert micro.labels.tolist() == [[0, 7, 0, 0, 0, 0], [9, 0, 0, 3, 0, 0]]
    assert micro.mask.tolist() == [[True, True, False, False, False, False], [False, True, True, True, False, False]]


def test_per_token_numbers_stand_where_their_token_is_predicted_and_come_back():
    rows = [_sequence(2, 3), _sequence(1, 5), _sequence(3, 1)]
    batch = Batch.whole(rows, reward=[0.5, 1.0, 2.0])
    batch.per_token["x"] = [torch.arange(len(r.tokens), dtype=torch.float32) * 10 for r in rows]
    micro = micro_batches(batch, 2, CPU)
    for part in micro:
        for b, index in enumerate(part.indices):
            n = len(rows[index].tokens)
            assert part.extras["x"][b, : n - 1].tolist() == [10.0 * i for i in range(1, n)]
            assert part.extras["reward"][b].item() == batch.per_sequence["reward"][index]
    back = unpad(micro, [part.extras["x"] for part in micro], batch)
    assert all(torch.equal(found, given) for found, given in zip(back, batch.per_token["x"], strict=True))


def test_a_share_without_sequences_still_gives_fillers_without_trained_tokens():
    batch = Batch.whole([_sequence(1, 2)]).select([])
    micro = micro_batches(batch, 4, CPU, length_multiple=2, count_multiple=2)
    assert [part.mask.any().item() for part in micro] == [False, False]
    assert all(part.tokens.shape == (1, 2) and part.indices == [] for part in micro)
    assert unpad(micro, [torch.zeros(1, 2)] * 2, batch) == []


def test_a_selection_keeps_the_counts_of_the_whole():
    batch = Batch.whole([_sequence(1, 2), _sequence(1, 3), _sequence(2, 1)])
    part = batch.select([1])
    assert (part.total_tokens, part.total_sequences, len(part.sequences)) == (6, 3, 1)
