"""The policy's weights reach whoever asks for them whole, to the last bit and in bounded memory, from every layout."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file

from nemo_amft.config.schema import ModelConfig
from nemo_amft.models.builder import build_policy
from nemo_amft.models.hub_weights import export_hub_weights, load_hub_weights, unwrap
from nemo_amft.models.weight_buckets import Shard, all_broadcast, all_gather, buckets
from nemo_amft.parallel import groups, platform
from nemo_amft.planning.measure import allocated_bytes
from tests.parallel.ranks import run_ranks
from tests.parallel.tiny_models import read_tiny_config, write_tiny_model

LAYOUTS = {
    "tp2": (2, ModelConfig(tensor_model_parallel_size=2)),
    "pp2": (2, ModelConfig(pipeline_model_parallel_size=2)),
    "pp2_interleaved": (2, ModelConfig(pipeline_model_parallel_size=2, virtual_pipeline_model_parallel_size=2)),
    "tp2_pp2": (4, ModelConfig(tensor_model_parallel_size=2, pipeline_model_parallel_size=2)),
}
BUCKETS = {"one parameter": 1, "some": 150_000, "all": 10**9}
LARGEST = 4 * 8 * 32 * 64
"""Bytes of the largest parameter among the tiny models: queries, keys and values of Qwen3, 8 heads of 32."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("sync")
    return {name: write_tiny_model(name, root / name) for name in ("qwen2", "qwen3", "llama")}


def policy(model: ModelConfig, folder: Path, precision: str = "32") -> tuple[list, object]:
    hub_config = read_tiny_config(folder)
    with platform.megatron():
        chunks = build_policy(hub_config, model, precision)
    load_hub_weights(chunks, hub_config, folder)
    return chunks, hub_config


@contextlib.contextmanager
def counted_broadcasts() -> Iterator[list]:
    """A list that grows by an entry a broadcast."""
    original, calls = dist.broadcast, []

    def counting(*args, **kwargs):
        calls.append(args)
        return original(*args, **kwargs)

    dist.broadcast = counting
    try:
        yield calls
    finally:
        dist.broadcast = original


def peak_bytes(chunks: list, hub_config, bucket_bytes: int) -> int:
    """Most bytes that a pass over the weights allocates at one time."""
    with allocated_bytes() as peak:
        for tensor in export_hub_weights(chunks, hub_config, bucket_bytes):
            del tensor  # else it lives on while the next is put together
    return peak()


def export(model: ModelConfig, folders: dict[str, Path]) -> dict[tuple[str, str], dict]:
    """By model and bucket: whether all tensors are the folder's, broadcasts, and peak of the bytes held for it."""
    groups.initialize(model, seed=1)
    found = {}
    for name, folder in folders.items():
        expected = load_file(folder / "model.safetensors")
        chunks, hub_config = policy(model, folder)
        for bucket, size in BUCKETS.items():
            with counted_broadcasts() as broadcasts:
                tensors = {key: tensor.clone() for key, tensor in export_hub_weights(chunks, hub_config, size)}
            found[name, bucket] = {
                "equal": tensors.keys() == expected.keys() and all(tensors[key].equal(expected[key]) for key in tensors),
                "broadcasts": len(broadcasts),
                "bytes": 2 * sum(tensor.nbytes for tensor in tensors.values()),  # a padded vocabulary, copies of norms
                "peak": peak_bytes(chunks, hub_config, size),
            }
    return found


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_hub_s_tensors_in_bounded_memory(layout, folders):
    ranks, model = LAYOUTS[layout]
    tensor, stages = model.tensor_model_parallel_size, model.pipeline_model_parallel_size
    a_bucket = (1 if stages > 1 else 0) + (
        tensor if tensor > 1 else 0
    )  # on a CPU every tensor-parallel rank broadcasts its part
    for found in run_ranks(ranks, export, model, folders):
        for key, one in found.items():
            assert one["equal"], key
            # The buffer, one parameter's tensors put together from it, and small change.
            assert one["peak"] <= max(min(BUCKETS[key[1]], one["bytes"]), LARGEST) + LARGEST + 4096, key
        for name in folders:
            alone, some, together = (found[name, bucket]["broadcasts"] for bucket in BUCKETS)
            assert together == stages * a_bucket, "with room for all, one bucket a stage"
            assert together < some < alone / 2


def gather_twice() -> bool:
    """Whether the collective for a GPU and the one for a CPU fill in the same."""
    whole = torch.arange(12.0).view(2, 6)
    found = []
    for gather in (all_gather, all_broadcast):
        flat = torch.zeros(2, 6)
        flat[dist.get_rank()] = whole[dist.get_rank()]
        gather(flat, dist.group.WORLD)
        found.append(flat.equal(whole))
    return all(found)


def test_shards_are_gathered_in_place_by_either_collective():
    assert run_ranks(2, gather_twice) == [True, True]


def test_buckets_keep_order_and_cut_at_owner_dtype_and_size():
    f32, bf16 = torch.float32, torch.bfloat16
    shards = [
        Shard("a", 0, (5,), f32),
        Shard("b", 0, (5,), f32),
        Shard("c", 0, (1,), f32),
        Shard("large", 0, (100,), f32),
        Shard("d", 0, (1,), f32),
        Shard("e", 0, (1,), bf16),
        Shard("f", 1, (1,), bf16),
    ]
    names = [[shard.name for shard in bucket] for bucket in buckets(shards, 40)]
    assert names == [["a", "b"], ["c"], ["large"], ["d"], ["e"], ["f"]]
    assert buckets([], 40) == []


def export_alone(folder: Path, precision: str) -> tuple[bool, set[str], int]:
    """Whether the values are the folder's; which tensors do not lie in the policy's own memory; the peak of the bytes held."""
    groups.initialize(ModelConfig(), seed=1)
    chunks, hub_config = policy(ModelConfig(), folder, precision)
    storages = {parameter.untyped_storage().data_ptr() for parameter in unwrap(chunks[0]).parameters()}
    expected, equal, copied = load_file(folder / "model.safetensors"), True, set()
    for name, tensor in export_hub_weights(chunks, hub_config):
        equal &= tensor.equal(expected.pop(name).to(tensor.dtype))
        if tensor.untyped_storage().data_ptr() not in storages:
            copied.add(name.split(".", 3)[-1])

    return equal and not expected, copied, peak_bytes(chunks, hub_config, 1)


@pytest.mark.parametrize("precision", ["32", "bf16"])
def test_on_one_rank_the_policy_s_own_memory_is_handed_out(precision, folders):
    ((equal, copied, peak),) = run_ranks(1, export_alone, folders["qwen2"], precision)
    assert equal
    # Megatron interleaves queries, keys and values: they cannot be views.
    assert copied <= {f"self_attn.{x}_proj.{kind}" for x in "qkv" for kind in ("weight", "bias")}
    assert peak <= LARGEST
