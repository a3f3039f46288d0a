"""Bytes that a rank sends in one step, by kind of collective. What it receives is as much.

Ring algorithms over p ranks: gathering or reduce-scattering N bytes sends (p - 1) / p N, all-reducing them twice that.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from nemo_amft.config.architecture import Architecture
from nemo_amft.config.rules import data_parallel_size, lookup
from nemo_amft.config.schema import Config, OptimConfig
from nemo_amft.planning.engine import Engine
from nemo_amft.planning.memory import uses_critic, weight_bytes
from nemo_amft.planning.parameters import buffer_elements, stages
from nemo_amft.planning.workload import Pass, Workload

Wire = Literal["node", "network", "host"]


@dataclass(frozen=True)
class Traffic:
    kind: str
    """What is sent."""
    bytes: float
    wire: Wire
    """node: between GPUs of a node. network: between nodes. host: host tensors over gloo."""


def traffic(config: Config, architecture: Architecture, work: Workload, engine: Engine) -> list[Traffic]:
    """Of one average step, on a rank of the fullest pipeline stage. Kinds that a layout has no use for are left out."""
    model = config.model
    tp, cp, dp = model.tensor_model_parallel_size, model.context_parallel_size, data_parallel_size(config)
    tensor = sum(tensor_traffic(config, architecture, one) for one in work.passes)
    pipeline = sum(pipeline_traffic(config, architecture, one) for one in work.passes)
    context = sum(context_traffic(config, architecture, one) for one in work.passes)
    reduce, gather = _data_traffic(config, architecture, work)
    kind = "reduce-scatters and all-gathers" if model.sequence_parallel else "all-reduces"
    sharded = config.optim.use_distributed_optimizer
    found = [
        Traffic(f"tensor parallel, {kind} of activations", tensor, wire(config, tp)),
        Traffic("context parallel, keys and values passed on", context, wire(config, tp * cp)),
        Traffic("pipeline, activations and their gradients sent", pipeline, wire(config, tp * cp * dp * 2)),
        Traffic(
            f"data parallel, {'reduce-scatter' if sharded else 'all-reduce'} of gradients", reduce, wire(config, tp * cp * dp)
        ),
        Traffic("data parallel, all-gather of parameters", gather, wire(config, tp * cp * dp)),
        *sync_traffic(config, architecture, engine),
        Traffic("completions, gathered on every rank", _completions(config, work, engine), "host"),
    ]
    return [one for one in found if one.bytes]


def wire(config: Config, span: int) -> Wire:
    """What joins ranks of which the farthest are `span` apart: Megatron numbers tensor, context, data, then pipeline ranks."""
    return "node" if min(span, config.trainer.num_nodes * config.trainer.devices) <= config.trainer.devices else "network"


def tensor_traffic(config: Config, architecture: Architecture, one: Pass) -> float:
    """Two all-reduces a layer and direction (Korthikanti et al., section 4.2.1); sequence parallelism sends the same in halves,
    and gathers both inputs once more for the weights' gradients."""
    model, tp = config.model, config.model.tensor_model_parallel_size
    if tp == 1:
        return 0.0
    ring = (tp - 1) / tp * rank_positions(config, one) * architecture.hidden_size * weight_bytes(config)
    layers = architecture.num_hidden_layers / model.pipeline_model_parallel_size
    forward = 4 * layers
    backward = (6 if model.sequence_parallel else 4) * layers + (forward if model.recompute_granularity == "full" else 0)
    ends = 2 + (
        2 if one.backward and not one.critic else 0
    )  # embedding, and the gradient that comes back from the output layer
    return ring * (forward + (backward if one.backward else 0) + ends)


def pipeline_traffic(config: Config, architecture: Architecture, one: Pass) -> float:
    """A micro-batch's hidden states to the next stage, their gradients to the one before; a round for each virtual chunk."""
    model = config.model
    if model.pipeline_model_parallel_size == 1:
        return 0.0
    split = model.tensor_model_parallel_size if model.sequence_parallel else 1
    states = rank_positions(config, one) * architecture.hidden_size * weight_bytes(config) / split
    return states * (2 if one.backward else 1) * (model.virtual_pipeline_model_parallel_size or 1)


def context_traffic(config: Config, architecture: Architecture, one: Pass) -> float:
    """Keys and values go round the ring once; in the backward pass again, with their gradients."""
    model, cp = config.model, config.model.context_parallel_size
    own = (
        rank_positions(config, one) * 2 * architecture.key_value_size / model.tensor_model_parallel_size * weight_bytes(config)
    )
    layers = architecture.num_hidden_layers / model.pipeline_model_parallel_size
    return (cp - 1) * own * layers * (3 if one.backward else 1)


def rank_positions(config: Config, one: Pass) -> float:
    """Positions of a pass that one rank computes (each of its layers, that is)."""
    return one.total_positions / (data_parallel_size(config) * config.model.context_parallel_size)


def _data_traffic(config: Config, architecture: Architecture, work: Workload) -> tuple[float, float]:
    """(gradients, parameters). A meta-update reduces grad U as well, and the step before it both terms apart."""
    reduce = gather = 0.0
    extra = 2 / every if (every := lookup(config, "controller.meta_every")) and lookup(config, "controller.eta_mu") else 0.0
    parts: list[tuple[OptimConfig, bool, float]] = [(config.optim, True, work.updates + extra)]
    if uses_critic(config):
        parts.append((config.critic.optim, False, work.updates))
    ranks = data_parallel_size(config) * config.model.context_parallel_size
    for optim, output, reductions in parts:
        chunks = stages(architecture, config.model, output=output)[0]
        elements = buffer_elements(chunks, ranks, optim.use_distributed_optimizer) * (ranks - 1) / ranks
        reduce += elements * 4 * reductions * (1 if optim.use_distributed_optimizer else 2)
        if optim.use_distributed_optimizer:
            gather += elements * weight_bytes(config) * work.updates
    return reduce, gather


def sync_traffic(config: Config, architecture: Architecture, engine: Engine) -> list[Traffic]:
    """Every rank ends up with every tensor whole: a stage's shards go to all stages, then shards to all tensor ranks."""
    if not engine.weights:
        return []
    model = config.model
    tp, pp = model.tensor_model_parallel_size, model.pipeline_model_parallel_size
    whole = architecture.parameters * weight_bytes(config)
    dp = data_parallel_size(config) * model.context_parallel_size
    return [
        Traffic("weight sync, all-gathers of shards", whole * (tp - 1) / tp, wire(config, tp)),
        Traffic("weight sync, broadcasts over stages", whole / tp * (pp - 1) / pp, wire(config, tp * dp * 2 if pp > 1 else 1)),
    ]


def _completions(config: Config, work: Workload, engine: Engine) -> float:
    """12 bytes a token (id and log-prob) and 16 a response. Ranks that share a vLLM engine send zeros as long as its share."""
    world = config.trainer.num_nodes * config.trainer.devices
    ranks = world if engine.weights else engine.engines
    each = work.rollouts * (work.response * 12 + 16) / engine.engines
    return each * (ranks - 1)
