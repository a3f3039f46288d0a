"""What one rank says of itself, for invariants over the whole world.

Weights are ids: element k of the hub's tensors, in the order of names, is k + 1 (exact in fp32). Loaded as any model, they tell
of a number on any rank which element of the model it is, through every cut that Megatron, the distributed optimiser, the weight
sync and the checkpoint make, without a second description of those cuts. 0 is padding, or the critic's value head.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedObject, ShardedTensor, is_main_replica
from megatron.core.dist_checkpointing.state_dict_utils import save_preprocess
from megatron.core.optimizer.optimizer import MegatronOptimizer
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM

from nemo_amft.algorithms.meta_update import inner_product
from nemo_amft.data.batching import Batch
from nemo_amft.models import checkpoints
from nemo_amft.models.builder import build_critic, build_policy
from nemo_amft.models.critic import Critic
from nemo_amft.models.hub_weights import export_hub_weights, load_hub_weights
from nemo_amft.models.packing import rows_and_slots
from nemo_amft.models.policy import Policy
from nemo_amft.models.trainable import TrainableModel
from nemo_amft.parallel import groups, platform, reductions
from nemo_amft.parallel.groups import Place
from nemo_amft.types import TokenSequence
from tests.lockstep.layouts import Layout, hub_config

Ids = np.ndarray
"""int64 [n]"""


@dataclass(frozen=True)
class Piece:
    """A part of a tensor or object that a checkpoint gets from a rank."""

    key: str
    shape: tuple[int, ...]
    offset: tuple[int, ...]
    size: tuple[int, ...]
    written: bool
    """By this rank, and not by another that holds the same."""


@dataclass(frozen=True)
class Report:
    """One rank's."""

    place: Place
    product_group: tuple[int, ...]
    """Global ranks over which its inner product is summed."""
    owned: Ids
    """Elements that its inner product counts."""
    in_norm: Ids
    """Elements that Megatron's gradient norm counts."""
    square: float
    """<w, w> by the inner product."""
    contributions: list[tuple[Ids, Ids]]
    """Of each shard of a main parameter: its ids, and its gradients where every rank put 1 everywhere."""
    micro_batches: int
    tokens: Counter
    """Labels for which it computes a log-prob."""
    label_sums: tuple[float, float]
    """Sum and count of all trained labels, reduced as a metric."""
    synced: list[tuple[str, bool]]
    """Hub tensors that an export brings, and whether they are as they were."""
    pieces: list[Piece]
    main_weights: list[tuple[str, bool]]
    """Main weights in its part of a checkpoint's optimiser, and whether they are the model's."""
    elements: tuple[int, int]
    """Of its parameters, and of its gradient buffers."""


def write_ids(layout: Layout, folder: Path) -> dict[str, torch.Tensor]:
    """A hub folder whose weights are ids; the tensors."""
    config = hub_config(layout.tied, layout.family)
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in AutoModelForCausalLM.from_config(config).named_parameters()}
    tensors, start = {}, 1
    for name in sorted(shapes):
        stop = start + shapes[name].numel()
        tensors[name] = torch.arange(start, stop, dtype=torch.float32).view(shapes[name])
        start = stop
    assert start < 2**24, "not exact in fp32"
    config.architectures = ["Qwen2ForCausalLM" if layout.family == "qwen2" else "Qwen3ForCausalLM"]
    config.save_pretrained(folder)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return tensors


def global_batch(sequences: int = 23) -> Batch:
    """Sequences of 3 to 32 tokens, each token of the batch another."""
    g = torch.Generator().manual_seed(1)
    made = []
    for i in range(sequences):
        n = 3 + int(torch.randint(0, 30, (), generator=g))
        tokens, trained = tuple(1000 * i + k for k in range(n)), (*[False] * 2, *[True] * (n - 2))
        made.append(TokenSequence(tokens, trained, (0.0,) * n))
    return Batch.whole(made)


def examine(layout: Layout, folder: str, tensors: dict[str, torch.Tensor], batch: Batch) -> Report:
    """Build policy or critic on this rank and report. Collective."""
    case = layout.case
    place = groups.initialize(case.model, 1)
    config = AutoConfig.from_pretrained(folder)
    with platform.megatron():
        chunks = (build_critic if layout.critic else build_policy)(config, case.model, case.precision)
        load_hub_weights(chunks, config, Path(folder))
        model = (Critic if layout.critic else Policy)(chunks, case.model, case.optim, case.precision, place)
    owned, in_norm, square = _counted(model)
    micro_batches, tokens, label_sums = _computed(model, batch, place)
    pieces, main_weights = _saved(model)
    return Report(
        place=place,
        product_group=tuple(dist.get_process_group_ranks(model.optimizer.get_grad_stats_parallel_group())),
        owned=owned,
        in_norm=in_norm,
        square=square,
        contributions=_contributions(model),
        micro_batches=micro_batches,
        tokens=tokens,
        label_sums=label_sums,
        synced=[
            (name, torch.equal(tensor, tensors[name]))
            for name, tensor in ([] if layout.critic else export_hub_weights(model.chunks, config, 4096))
        ],
        pieces=pieces,
        main_weights=main_weights,
        elements=(
            sum(p.numel() for chunk in model.chunks for p in chunk.parameters()),
            sum(buffer.grad_data.numel() for chunk in model.chunks for buffer in chunk.buffers),
        ),
    )


def ids(tensors: Sequence[torch.Tensor]) -> Ids:
    """Without padding."""
    found = torch.cat([torch.zeros(0), *(t.detach().reshape(-1) for t in tensors)]).numpy().astype(np.int64)
    return found[found > 0]


def _counted(model: TrainableModel) -> tuple[Ids, Ids, float]:
    product = inner_product(model)
    mains = [p.detach() for p in model.main_parameters()]
    for p in model.main_parameters():
        p.grad = p.detach().clone()
    with platform.megatron():
        # As megatron-core 0.16 and 0.19 call it.
        name = next(n for n in ("get_main_grads_for_grad_norm", "get_grads_for_grad_norm") if hasattr(MegatronOptimizer, n))
        in_norm = ids([gradient for member in model._optimizers() for gradient in getattr(member, name)()])
    (square,) = product((mains, mains))
    return ids([main for main, counts in zip(mains, product.owned, strict=True) if counts]), in_norm, square


def _contributions(model: TrainableModel) -> list[tuple[Ids, Ids]]:
    model.zero_gradients()
    for chunk in model.chunks:
        for p in chunk.parameters():
            p.main_grad.fill_(1.0)
    model.finish_gradients()
    found = []
    for p, gradient in zip(model.main_parameters(), model.main_gradients(), strict=True):
        own, counts = (t.detach().numpy().astype(np.int64).ravel() for t in (p, gradient))
        found.append((own[own > 0], counts[own > 0]))
    return found


def _computed(model: TrainableModel, batch: Batch, place: Place) -> tuple[int, Counter, tuple[float, float]]:
    micro = model.micro_batches(batch.share(place))
    tokens: Counter = Counter()
    for one in micro:
        _, slots = rows_and_slots(one.mask, one.packing)
        tokens.update(one.labels.reshape(-1)[slots].tolist())
    parts = [{"label": (one.labels[one.mask].sum(), one.mask.sum())} for one in micro] if place.is_last_stage else []
    return len(micro), tokens, reductions.reduce_sums(parts, ("label",), place)["label"]


def _saved(model: TrainableModel) -> tuple[list[Piece], list[tuple[str, bool]]]:
    with platform.megatron():
        state, _ = save_preprocess(checkpoints._sharded(model, loading=False))
        shared_out = checkpoints._shared_out()
        values = {(v.key, v.global_offset): v.data for v in nested_values(state) if isinstance(v, ShardedTensor)}
        shared_out.apply_saving_parallelization(state)
    pieces = []
    for value in nested_values(state):
        tensor = isinstance(value, ShardedTensor)
        assert tensor or isinstance(value, ShardedObject), type(value)
        size = (1,) * value.prepend_axis_num + tuple(value.local_shape) if tensor else (1,) * len(value.global_shape)
        written = is_main_replica(value.replica_id)
        pieces.append(Piece(value.key, tuple(value.global_shape), tuple(value.global_offset), size, written))
    main_weights = []
    for (key, offset), data in values.items():
        for prefix in ("optimizer.state.fp32_param.", "optimizer.state.param."):
            if key.startswith(prefix):
                own = values[key.removeprefix(prefix), offset]
                main_weights.append((key, torch.equal(data.reshape(-1), own.reshape(-1))))
    return pieces, main_weights
