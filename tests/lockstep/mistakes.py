"""Mistakes of the kind that parallel code makes in silence, put into the code on purpose: each must break an invariant."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from unittest.mock import patch

import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedTensor
from megatron.core.dist_checkpointing.strategies.fully_parallel import FullyParallelSaveStrategyWrapper
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
from megatron.core.transformer import transformer_block

from nemo_amft.algorithms import meta_update
from nemo_amft.data import batching, packing
from nemo_amft.models import norm, weight_buckets
from nemo_amft.parallel import reductions

Mistake = Callable[[], AbstractContextManager]


def duplicates_counted() -> AbstractContextManager:
    """The inner product counts what tensor ranks hold in duplicate."""
    return patch.object(meta_update, "param_is_not_tensor_parallel_duplicate", lambda _: True)


def product_over_model_ranks_alone() -> AbstractContextManager:
    """The distributed optimiser's shards are summed as if each rank held all."""
    return patch.object(
        DistributedOptimizer, "get_grad_stats_parallel_group", lambda _: parallel_state.get_model_parallel_group()
    )


def norms_unmarked() -> AbstractContextManager:
    """Norms are not marked as seeing a part of the tokens."""
    init = norm.RMSNorm.__init__

    def unmarked(self, *args, **kwargs):
        init(self, *args, **kwargs)
        self.weight.sequence_parallel = False

    return patch.object(norm.RMSNorm, "__init__", unmarked)


def sequence_dealt_twice() -> AbstractContextManager:
    """The first sequence of the first data-parallel rank goes to the second too."""
    deal = batching.balanced_shares

    def dealt(lengths, shares):
        first, second, *others = deal(lengths, shares)
        return [first, sorted([*second, first[0]]), *others]

    return patch.object(batching, "balanced_shares", dealt)


def positions_of_another_context_rank() -> AbstractContextManager:
    """The last context rank computes the positions of the one before."""
    slots = packing._slots
    return patch.object(
        packing, "_slots", lambda padded, width, rank, size: slots(padded, width, min(rank, max(size - 2, 0)), size)
    )


def every_context_rank_speaks() -> AbstractContextManager:
    """A metric's sums are added up over context ranks, which all have the same."""
    reduce = reductions.reduce_sums
    return patch.object(
        reductions, "reduce_sums", lambda parts, names, place: reduce(parts, names, replace(place, context_rank=0))
    )


def stale_shard_in_a_sync() -> AbstractContextManager:
    """Tensor rank 1 does not send its part of a bucket."""

    def all_but_one(flat, group):
        for rank, row in enumerate(flat):
            if rank != 1:
                dist.broadcast(row, group_src=rank, group=group)

    return patch.object(weight_buckets, "all_broadcast", all_but_one)


def every_replica_writes() -> AbstractContextManager:
    """Saving is not shared out: whoever holds a tensor believes that it is the one to write it."""
    share_out = FullyParallelSaveStrategyWrapper.apply_saving_parallelization

    def shared_out(self, state):
        share_out(self, state)
        for value in nested_values(state):
            if isinstance(value, ShardedTensor):
                value.replica_id = 0

    return patch.object(FullyParallelSaveStrategyWrapper, "apply_saving_parallelization", shared_out)


def layers_saved_by_local_number() -> AbstractContextManager:
    """Each stage's checkpoint calls its first layer the first."""
    state = transformer_block.TransformerBlock.sharded_state_dict

    def local(self, *args, **kwargs):
        with ExitStack() as stack:
            stack.enter_context(patch.object(transformer_block, "get_transformer_layer_offset", lambda *a, **k: 0))
            for i, layer in enumerate(self.layers):
                stack.enter_context(patch.object(layer, "layer_number", i + 1))
            return state(self, *args, **kwargs)

    return patch.object(transformer_block.TransformerBlock, "sharded_state_dict", local)


def main_weights_saved_from_wrong_places() -> AbstractContextManager:
    """The optimiser's state is saved as megatron-core does it (parallel/distributed_optimizer.py, 1)."""
    mended = DistributedOptimizer.sharded_param_state_fully_reshardable
    return patch.object(DistributedOptimizer, "sharded_param_state_fully_reshardable", mended.__wrapped__)
