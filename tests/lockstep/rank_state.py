"""What a process has one of and a rank must have for itself: swapped with the rank whose turn it is."""

from __future__ import annotations

import os
import types
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.tensor_parallel import random as tensor_parallel_random
from torch.distributed import distributed_c10d as c10d

from nemo_amft.observe import start_up
from nemo_amft.parallel import failures, run_lock

_C10D = ["_pg_map", "_pg_names", "_pg_group_ranks", "_pg_backend_config", "_group_count", "_tags_to_pg", "_pg_to_tag", "_world"]


def _data(module: types.ModuleType) -> list[str]:
    """Names of a module's globals that are no code."""
    code = (types.FunctionType, types.BuiltinFunctionType, types.ModuleType, type)
    return [name for name, value in vars(module).items() if not name.startswith("__") and not isinstance(value, code)]


class RankStates:
    """Module globals, torch's generator and torchrun's variables of the process, and of each rank while others run."""

    def __init__(self, size: int):
        modules = (parallel_state, tensor_parallel_random, start_up, run_lock, failures)
        self._globals = [(c10d, _C10D), *((module, _data(module)) for module in modules)]
        self._size, self._process = size, self._read()
        self._kept: dict[int, tuple[list[list[Any]], torch.Tensor]] = {}

    def keep(self, rank: int) -> None:
        """`rank`'s turn is over."""
        self._kept[rank] = self._read()

    def put(self, rank: int) -> None:
        """`rank`'s turn begins."""
        self._write(self._kept.pop(rank, None) or self._fresh())
        os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank))

    def restore(self) -> None:
        """As before the world, but for the environment, which is the caller's."""
        self._write(self._process)

    def _read(self) -> tuple[list[list[Any]], torch.Tensor]:
        return [[vars(module)[name] for name in names] for module, names in self._globals], torch.get_rng_state()

    def _write(self, state: tuple[list[list[Any]], torch.Tensor]) -> None:
        values, generator = state
        for (module, names), of_module in zip(self._globals, values, strict=True):
            vars(module).update(zip(names, of_module, strict=True))
        torch.set_rng_state(generator)

    def _fresh(self) -> tuple[list[list[Any]], torch.Tensor]:
        """What a rank starts with: containers are its own."""
        made = {dict: dict.copy, list: list.copy, c10d._World: lambda _: c10d._World()}
        values, generator = self._process
        return [[made.get(type(v), lambda same: same)(v) for v in of_module] for of_module in values], generator
