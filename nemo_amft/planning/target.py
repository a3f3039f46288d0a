"""What a plan is made for: a GPU of the table, or a CPU."""

from __future__ import annotations

from nemo_amft.config.schema import Config
from nemo_amft.planning.hardware import GPU, GPUS
from nemo_amft.types import UserError

DEFAULT_GPU = "a100_80gb"
"""The paper's (C.5)."""


def target(config: Config, name: str | None) -> GPU | None:
    """The GPU that `gpu=NAME` asks for; None is a CPU. Without a name: the paper's for bf16 or several nodes, else a CPU.

    Raises:
        UserError: the name is not in the table.
    """
    if name is None:
        name = DEFAULT_GPU if config.trainer.precision == "bf16" or config.trainer.num_nodes > 1 else "cpu"
    key = name.lower().replace("-", "_")
    if key == "cpu":
        return None
    if key not in GPUS:
        raise UserError(f"gpu: found {name}, expected one of: cpu, {', '.join(GPUS)}")
    return GPUS[key]
