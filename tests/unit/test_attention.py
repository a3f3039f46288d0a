"""The local core attention against attention written out."""

from __future__ import annotations

import itertools
import math
from types import SimpleNamespace

import pytest
import torch
from megatron.core.transformer.enums import AttnMaskType

from nemo_amft.data.packing import bundled, pack
from nemo_amft.models.attention import CoreAttention
from nemo_amft.models.packing import PackedSequences

HEADS, GROUPS, HEAD_DIM = 4, 2, 8
CONFIG = SimpleNamespace(context_parallel_size=1, attention_dropout=0.0)


def random_qkv(num_queries: int, num_keys: int, batch: int = 2) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((num_queries, HEADS), (num_keys, GROUPS), (num_keys, GROUPS))
    return [torch.randn(length, batch, heads, HEAD_DIM, generator=generator) for length, heads in shapes]


def attention(query, key, value, mask=None, packed=None) -> torch.Tensor:
    core = CoreAttention(CONFIG, 1, AttnMaskType.causal, "self")
    return core(query, key, value, mask, attn_mask_type=AttnMaskType.causal, packed_seq_params=packed)


def written_out(query, key, value, visible) -> torch.Tensor:
    key, value = (x.repeat_interleave(HEADS // GROUPS, dim=2) for x in (key, value))
    scores = torch.einsum("qbhd,kbhd->bhqk", query, key) / math.sqrt(HEAD_DIM)
    return torch.einsum("bhqk,kbhd->qbhd", scores.masked_fill(~visible, -torch.inf).softmax(-1), value).flatten(2)


@pytest.mark.parametrize(("num_queries", "num_keys"), [(7, 7), (1, 7), (3, 7)], ids=["prompt", "decode", "rest of a prompt"])
def test_queries_are_the_last_positions_and_see_no_later_key(num_queries, num_keys):
    query, key, value = random_qkv(num_queries, num_keys)
    visible = torch.ones(num_queries, num_keys, dtype=torch.bool).tril(num_keys - num_queries)
    torch.testing.assert_close(attention(query, key, value), written_out(query, key, value, visible))


def test_a_mask_replaces_causality():
    query, key, value = random_qkv(1, 7)
    hidden = torch.zeros(2, 1, 1, 7, dtype=torch.bool)
    hidden[1, ..., 2:4] = True
    torch.testing.assert_close(attention(query, key, value, hidden), written_out(query, key, value, ~hidden))


@pytest.mark.parametrize(
    "lengths", [(4, 1, 4), (5, 5, 5), (3, 60, 64, 70, 80, 100, 101, 300)], ids=["one bundle", "equal", "several bundles"]
)
def test_packed_sequences_see_themselves_only(lengths):
    query, key, value = random_qkv(sum(lengths), sum(lengths), batch=1)
    packed = PackedSequences.of(pack(lengths, 0, 1, torch.device("cpu")), with_engine=False)
    actual = attention(query, key, value, packed=packed)
    for start, end in itertools.pairwise([0, *itertools.accumulate(lengths)]):
        expected = attention(*(x[start:end] for x in (query, key, value)))
        torch.testing.assert_close(actual[start:end], expected)


def test_bundles_hold_similar_lengths_in_order():
    lengths = [3, 60, 64, 70, 80, 100, 101, 300]
    assert bundled(lengths) == [[3, 60, 64], [70, 80], [100, 101], [300]]
    assert bundled([7]) == [[7]]
