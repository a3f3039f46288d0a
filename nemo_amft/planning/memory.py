"""What a rank holds from step to step, however long the text: weights, gradients, optimiser, kept difference."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from nemo_amft.config.architecture import Architecture
from nemo_amft.config.rules import data_parallel_size, lookup
from nemo_amft.config.schema import Config, OptimConfig
from nemo_amft.planning.parameters import buffer_elements, stages

GIB = 1024**3


@dataclass(frozen=True)
class Static:
    """Bytes of each consumer on one rank."""

    device: dict[str, int]
    host: dict[str, int]
    """What optimizer_cpu_offload keeps in host memory."""
    parameters: int
    """The policy's, on this rank."""

    @property
    def total(self) -> int:
        return sum(self.device.values())


def static_memory(config: Config, architecture: Architecture, stage: int) -> Static:
    """What a rank of pipeline stage `stage` holds between steps. The critic's shape is taken for the policy's."""
    device: dict[str, int] = {}
    host: dict[str, int] = {}
    chunks = stages(architecture, config.model)[stage]
    _add_trained("policy", chunks, config, config.optim, device, host)
    if uses_critic(config):
        _add_trained(
            "critic", stages(architecture, config.model, output=False)[stage], config, config.critic.optim, device, host
        )
    if lookup(config, "method.rl.kl_coef") or lookup(config, "method.kl_coef"):
        device["reference weights"] = sum(map(sum, chunks)) * weight_bytes(config)
    if lookup(config, "controller.eta_mu"):
        # fp32, as the gradients it is a difference of. A trace is kept beside the newest difference.
        copies = 2 if lookup(config, "controller.meta_gradient.trace_decay") else 1
        device["kept difference"] = copies * 4 * _shard(chunks, config, config.optim)
    return Static(device, host, sum(map(sum, chunks)))


def uses_critic(config: Config) -> bool:
    return lookup(config, "method.rl.advantage") == "gae"


def weight_bytes(config: Config) -> int:
    """Bytes of a parameter, an activation and a cached key or value."""
    return 2 if config.trainer.precision == "bf16" else 4


def optimizer_ranks(config: Config, optim: OptimConfig) -> int:
    """Ranks over which the optimiser of a model-parallel rank's parameters is split."""
    return data_parallel_size(config) * config.model.context_parallel_size if optim.use_distributed_optimizer else 1


def _add_trained(
    name: str, chunks: tuple, config: Config, optim: OptimConfig, device: dict[str, int], host: dict[str, int]
) -> None:
    elements = buffer_elements(chunks, optimizer_ranks(config, optim), optim.use_distributed_optimizer)
    shard = _shard(chunks, config, optim)
    away = optim.optimizer_offload_fraction if optim.optimizer_cpu_offload else 0.0
    device[f"{name} weights"] = elements * weight_bytes(config)
    device[f"{name} gradients, fp32"] = elements * 4
    if config.trainer.precision == "bf16":
        device[f"{name} main weights, fp32"] = shard * 4
    device[f"{name} Adam moments, fp32"] = ceil(shard * 8 * (1 - away))
    if away:
        # Megatron's hybrid optimiser keeps moments and copies of weights and gradients on the host; main weights stay.
        host[f"{name} optimiser"] = ceil(shard * 16 * away)


def _shard(chunks: tuple, config: Config, optim: OptimConfig) -> int:
    ranks = optimizer_ranks(config, optim)
    return buffer_elements(chunks, ranks, optim.use_distributed_optimizer) // ranks
