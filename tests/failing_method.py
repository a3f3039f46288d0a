"""A method one of whose ranks fails while the others go on to wait for it."""

from __future__ import annotations

from pathlib import Path

import torch.distributed as dist

from nemo_amft.algorithms.methods.amft import AMFT

WORDS = "RuntimeError: the last rank has had enough"
TARGET = f"method._target_={Path(__file__).resolve()}:LastRankFails"
"""The override that chooses it."""


class LastRankFails(AMFT):
    def compose(self, step, groups, demonstrations):
        if dist.get_rank() == dist.get_world_size() - 1:
            raise RuntimeError(WORDS.partition(": ")[2])
        return super().compose(step, groups, demonstrations)
