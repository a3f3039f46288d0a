"""Process groups: torch.distributed and Megatron's model-parallel groups, and where this rank stands in them."""

from __future__ import annotations

import datetime
import math
import os
import socket
from dataclasses import dataclass

import torch.distributed as dist
from megatron.core import parallel_state

from nemo_amft.config.schema import ModelConfig
from nemo_amft.parallel import meeting, platform, slurm

MARGIN = datetime.timedelta(minutes=2)
"""What a collective waits for longer than a phase may last."""


@dataclass(frozen=True)
class Place:
    """Where this rank stands."""

    rank: int
    world_size: int
    tensor_rank: int
    tensor_size: int
    pipeline_rank: int
    pipeline_size: int
    data_rank: int
    data_size: int
    context_rank: int = 0
    context_size: int = 1

    @property
    def is_main(self) -> bool:
        """True on the one rank that writes files and talks to the terminal."""
        return self.rank == 0

    @property
    def is_last_stage(self) -> bool:
        """True where losses, log-probs and values come out of the pipeline."""
        return self.pipeline_rank == self.pipeline_size - 1


def _free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def initialize(
    model: ModelConfig,
    seed: int,
    phase_timeout_s: float = 1800.0,
    meeting_timeout_s: float = meeting.LIMIT_S,
    alone: bool = False,
) -> Place:
    """Join the job and build Megatron's groups for `model`'s layout. Works under torchrun, srun, or alone.

    A collective waits a little longer than `phase_timeout_s`, so that a phase that hangs ends with the stacks of all ranks, and
    not with one collective's complaint; for other ranks to come at all it waits no longer than `meeting_timeout_s`, and raises
    RunError. `alone`: this is one process for itself, whatever the environment says (a shell of a
    Slurm allocation speaks of many).
    """
    platform.install()
    if alone:
        os.environ.pop("TORCHELASTIC_USE_AGENT_STORE", None)  # torchrun's store is for its own ranks
    else:
        os.environ.update(slurm.environment(os.environ))
    if alone or "RANK" not in os.environ:
        # A port of its own, unless one is given, as another run may be going on here.
        port = _free_port() if alone else os.environ.get("MASTER_PORT") or _free_port()
        os.environ |= {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    platform.set_device(int(os.environ["LOCAL_RANK"]))
    timeout = datetime.timedelta(seconds=phase_timeout_s) + MARGIN
    if not dist.is_initialized():
        store = meeting.meet(meeting_timeout_s)
        store.set_timeout(timeout)
        rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        dist.init_process_group(platform.distributed_backend(), store=store, rank=rank, world_size=world, timeout=timeout)
    with platform.megatron():
        parallel_state.initialize_model_parallel(
            tensor_model_parallel_size=model.tensor_model_parallel_size,
            pipeline_model_parallel_size=model.pipeline_model_parallel_size,
            virtual_pipeline_model_parallel_size=model.virtual_pipeline_model_parallel_size,
            context_parallel_size=model.context_parallel_size,
            distributed_timeout_minutes=math.ceil(timeout / datetime.timedelta(minutes=1)),
        )
        from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed

        model_parallel_cuda_manual_seed(seed)
    return place()


def place() -> Place:
    """This rank's place in the groups that `initialize` built."""
    return Place(
        rank=dist.get_rank(),
        world_size=dist.get_world_size(),
        tensor_rank=parallel_state.get_tensor_model_parallel_rank(),
        tensor_size=parallel_state.get_tensor_model_parallel_world_size(),
        pipeline_rank=parallel_state.get_pipeline_model_parallel_rank(),
        pipeline_size=parallel_state.get_pipeline_model_parallel_world_size(),
        data_rank=parallel_state.get_data_parallel_rank(),
        data_size=parallel_state.get_data_parallel_world_size(),
        context_rank=parallel_state.get_context_parallel_rank(),
        context_size=parallel_state.get_context_parallel_world_size(),
    )


def shutdown() -> None:
    """Leave the job in good order."""
    if dist.is_initialized():
        parallel_state.destroy_model_parallel()
        dist.destroy_process_group()
