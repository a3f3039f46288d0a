"""Shares and micro-batches: nothing lost, masks from lengths, targets shifted by one."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from nemo_amft.data.batching import Batch, Cut, balanced_shares, micro_batches, unpad
from nemo_amft.data.packing import pack, padded_lengths
from nemo_amft.types import TokenSequence

CPU = torch.device("cpu")


def _sequence(prompt: int, response: int, first: int = 1) -> TokenSequence:
    n = prompt + response
    return TokenSequence(tuple(range(first, first + n)), tuple(i >= prompt for i in range(n)))


@given(st.lists(st.integers(1, 50), max_size=40), st.integers(1, 8))
def test_shares_hold_every_sequence_once_and_differ_by_less_than_the_longest(lengths, ranks):
    shares = balanced_shares(lengths, ranks)
    assert sorted(i for share in shares for i in share) == list(range(len(lengths)))
    totals = [sum(lengths[i] for i in share) for share in shares]
    assert max(totals) - min(totals) <= max(lengths, default=0)


def test_one_long_sequence_is_balanced_by_many_short_ones():
    assert balanced_shares([100, *[10] * 10], 2) == [[0], list(range(1, 11))]


def test_a_micro_batch_predicts_the_next_token_and_masks_by_length_alone():
    # token 0 stands for padding too: the mask must not care
    rows = [TokenSequence((5, 0, 7), (False, True, True)), TokenSequence((8, 9, 0, 0, 3), (False, False, True, True, True))]
    (micro,) = micro_batches(Batch.whole(rows), Cut(4, length_multiple=3), CPU)
    assert micro.tokens.tolist() == [[5, 0, 0, 0, 0, 0], [8, 9, 0, 0, 0, 0]]
    assert micro.labels.tolist() == [[0, 7, 0, 0, 0, 0], [9, 0, 0, 3, 0, 0]]
    assert micro.mask.tolist() == [[True, True, False, False, False, False], [False, True, True, True, False, False]]


def test_per_token_numbers_stand_where_their_token_is_predicted_and_come_back():
    rows = [_sequence(2, 3), _sequence(1, 5), _sequence(3, 1)]
    batch = Batch.whole(rows, reward=[0.5, 1.0, 2.0])
    batch.per_token["x"] = [torch.arange(len(r.tokens), dtype=torch.float32) * 10 for r in rows]
    micro = micro_batches(batch, Cut(2), CPU)
    for part in micro:
        for b, index in enumerate(part.indices):
            n = len(rows[index].tokens)
            assert part.extras["x"][b, : n - 1].tolist() == [10.0 * i for i in range(1, n)]
            assert part.extras["reward"][b].item() == batch.per_sequence["reward"][index]
    back = unpad(micro, [part.extras["x"] for part in micro], batch)
    assert all(torch.equal(found, given) for found, given in zip(back, batch.per_token["x"], strict=True))


def test_a_share_without_sequences_still_gives_fillers_without_trained_tokens():
    batch = Batch.whole([_sequence(1, 2)]).select([])
    micro = micro_batches(batch, Cut(4, length_multiple=2, count_multiple=2), CPU)
    assert [part.mask.any().item() for part in micro] == [False, False]
    assert all(part.tokens.shape == (1, 2) and part.indices == [] for part in micro)
    assert unpad(micro, [torch.zeros(1, 2)] * 2, batch) == []


def test_a_selection_keeps_the_counts_of_the_whole():
    batch = Batch.whole([_sequence(1, 2), _sequence(1, 3), _sequence(2, 1)])
    part = batch.select([1])
    assert (part.total_tokens, part.total_sequences, len(part.sequences)) == (6, 3, 1)


@given(st.lists(st.integers(2, 60), min_size=1, max_size=30), st.integers(1, 120), st.booleans())
def test_a_token_budget_is_kept_except_by_a_sequence_that_exceeds_it_alone(lengths, budget, packed):
    batch = Batch.whole([_sequence(1, n - 1) for n in lengths])
    micro = micro_batches(batch, Cut(tokens=budget, packed=packed), CPU)
    assert sorted(i for part in micro for i in part.indices) == list(range(len(lengths)))
    for part in micro:
        assert part.num_positions <= budget or len(part.indices) == 1
        assert part.num_positions >= part.num_real == sum(lengths[i] - 1 for i in part.indices)
        assert not packed or part.num_positions == part.num_real


def test_no_further_sequence_would_have_fitted():
    batch = Batch.whole([_sequence(1, n) for n in (3, 3, 3, 5, 9)])
    assert [part.indices for part in micro_batches(batch, Cut(tokens=10, packed=True), CPU)] == [[0, 1, 2], [3], [4]]
    assert [part.indices for part in micro_batches(batch, Cut(tokens=12), CPU)] == [[0, 1, 2], [3], [4]]
    assert [part.indices for part in micro_batches(batch, Cut(tokens=20), CPU)] == [[0, 1, 2, 3], [4]]


def test_packed_positions_are_the_real_ones_of_the_padded_batch_in_order():
    rows = [_sequence(1, 2, first=10), _sequence(2, 3, first=20), _sequence(1, 1, first=30)]
    (micro,) = micro_batches(Batch.whole(rows), Cut(packed=True), CPU)
    assert micro.packing.take(micro.tokens).tolist() == [[30, 10, 11, 20, 21, 22, 23]]
    assert micro.packing.position_ids.tolist() == [[0, 0, 1, 0, 1, 2, 3]]
    assert micro.packing.boundaries.tolist() == [0, 1, 3, 7]


@given(st.lists(st.integers(1, 40), min_size=1, max_size=12), st.sampled_from([1, 2, 4]), st.sampled_from([1, 2, 4]))
def test_context_ranks_share_every_position_once_and_alike(lengths, context, tensor):
    padded = padded_lengths(lengths, context, tensor)
    assert all(n <= p for n, p in zip(lengths, padded, strict=True))
    packings = [pack(padded, rank, context, CPU) for rank in range(context)]
    slots = torch.cat([p.slots for p in packings])
    width = max(padded)
    assert sorted(slots.tolist()) == [b * width + s for b, n in enumerate(padded) for s in range(n)]
    assert all(torch.equal(p.all_slots, slots) for p in packings)
    assert {len(p.slots) for p in packings} == {sum(padded) // context}
    assert (sum(padded) // context) % tensor == 0


def test_a_context_rank_has_a_piece_from_the_front_of_a_sequence_and_the_one_as_far_from_its_back():
    assert pack([8, 4], 1, 2, CPU).position_ids.tolist() == [[2, 3, 4, 5, 1, 2]]
