"""Megatron's distributed checkpoints in memory: `dist_checkpointing` but for its files, which it writes in forked processes.

Cutting, choosing who writes, factories and merging are Megatron's own. Everything is a copy. Shared by the ranks of one world,
and by those of a later one that resumes.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.dist_checkpointing.dict_utils import dict_list_map_outplace, merge, nested_values
from megatron.core.dist_checkpointing.mapping import ShardedObject, ShardedTensor, apply_factory_merges, is_main_replica
from megatron.core.dist_checkpointing.state_dict_utils import load_preprocess, save_preprocess
from megatron.core.dist_checkpointing.utils import extract_sharded_base


class MemoryCheckpointing:
    """Stands in for `dist_checkpointing` in models/checkpoints.py."""

    def __init__(self):
        self._kept: dict[str, dict[str, Any]] = {}
        """Folder -> key of a tensor, of an object, or "" for what is not sharded."""

    def save(self, state: dict[str, Any], folder: str, strategy: Any) -> None:
        state, common = save_preprocess(state)
        strategy.apply_saving_parallelization(state)
        kept = self._kept.setdefault(_name(folder), {})
        for part in nested_values(state):
            if not is_main_replica(part.replica_id):
                continue
            if isinstance(part, ShardedTensor):
                # NaN: what nobody writes is noticed.
                whole = kept.setdefault(part.key, torch.full(part.global_shape, torch.nan, dtype=part.dtype))
                whole[part.global_slice()] = part.data.detach().reshape(whole[part.global_slice()].shape)
            else:
                kept[part.unique_key] = copy.deepcopy(part.data)
        if dist.get_rank() == 0:
            kept[""] = copy.deepcopy(common)
        dist.barrier()

    def load(self, state: dict[str, Any], folder: str) -> dict[str, Any]:
        loaded = self.load_common_state_dict(folder)
        state, unsharded, factories = load_preprocess(state)
        merge(loaded, unsharded)
        state, _ = extract_sharded_base(state)
        kept = self._kept[_name(folder)]

        def read(part: ShardedTensor | ShardedObject) -> Any:
            if isinstance(part, ShardedTensor):
                return kept[part.key][part.global_slice()].reshape(part.local_shape).clone()
            return copy.deepcopy(kept[part.unique_key])

        merge(loaded, dict_list_map_outplace(read, state))
        return apply_factory_merges(loaded, factories)

    def load_common_state_dict(self, folder: str) -> dict[str, Any]:
        return copy.deepcopy(self._kept[_name(folder)][""])


def _name(folder: str) -> str:
    """The same before and after a checkpoint is put in place."""
    path = Path(folder)
    return f"{path.parent.name.removeprefix('.writing_')}/{path.name}"
