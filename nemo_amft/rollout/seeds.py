"""Seeds of single samples."""

from __future__ import annotations

import hashlib


def sample_seed(run_seed: int, stream: str, step: int, prompt_index: int, sample_index: int) -> int:
    """Seed in [0, 2**63) of one sample of a run.

    It belongs to the sample and not to a rank or an engine, so that another layout draws the same tokens. `stream` keeps the
    uses of a step apart ("train", "meta", "validation"). A hash makes neighbours independent and is the same on every platform.
    """
    key = "\0".join(map(str, (run_seed, stream, step, prompt_index, sample_index)))
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "big") >> 1
