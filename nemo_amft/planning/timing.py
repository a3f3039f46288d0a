"""Seconds of each phase of a step, from FLOPs, bytes and the assumptions below. For choosing between layouts, not for promises.

No estimate here has been compared with a run on GPUs yet.
"""

from __future__ import annotations

from math import ceil

from nemo_amft.config.architecture import Architecture
from nemo_amft.config.rules import data_parallel_size
from nemo_amft.config.schema import Config, OptimConfig
from nemo_amft.planning.communication import pipeline_traffic, sync_traffic, tensor_traffic, traffic, wire
from nemo_amft.planning.engine import Engine
from nemo_amft.planning.hardware import GPU
from nemo_amft.planning.memory import optimizer_ranks, uses_critic, weight_bytes
from nemo_amft.planning.parameters import buffer_elements, stages
from nemo_amft.planning.workload import Pass, Workload, micro_batches

COMPUTE = 0.5
"""Share of the matrix peak that training and reading prompts reach between collectives. Megatron's published model FLOPs
utilisations on A100 are 0.42 (22B) to 0.56 (1T), collectives included (arXiv 2205.05198, table 5)."""
MEMORY = 0.7
"""Share of the memory bandwidth that decoding reaches: streaming kernels come to 0.8 to 0.9, small ones to less."""
LINK = 0.7
"""Share of a link's or network's rate that large collectives reach."""
COLLECTIVE = 20e-6
"""Seconds of a small collective within a node; decoding waits for two a layer (rollout/vllm.py switches vLLM's own off)."""
KERNEL = 5e-6
"""Seconds to start a kernel from Python."""
GRAPH_KERNEL = 1.5e-6
"""The same within a captured graph."""
KERNELS = 12
"""Kernels of one layer's forward pass."""
MEGATRON_LAYER = 4e-4
"""Seconds of Python that Megatron's layer costs a decoded token when the policy decodes itself."""
HIDDEN = 0.7
"""Share that overlap_grad_reduce hides of the gradients' reduction, and overlap_param_gather of the parameters' gather."""
HOST_MEMORY_GBS = 20.0
"""Host memory bandwidth of one process, GB/s: eight share some 200 of a server's."""
GLOO_GBS = 1.0
"""Rate of host tensors over TCP, GB/s."""


def step_seconds(config: Config, architecture: Architecture, gpu: GPU, work: Workload, engine: Engine) -> dict[str, float]:
    """By phase, in the trainer's names. Verifying responses takes none of these and is not estimated."""
    seconds = {"sync": _sync(config, architecture, gpu, engine), "rollout": _rollout(config, architecture, gpu, work, engine)}
    for one in work.passes:
        seconds[one.phase] = seconds.get(one.phase, 0.0) + pass_seconds(config, architecture, gpu, one)
    seconds["optimizer"] = _optimizer(config, architecture, gpu, config.optim, True) * work.updates
    if uses_critic(config):
        seconds["optimizer"] += _optimizer(config, architecture, gpu, config.critic.optim, False) * work.updates
    seconds["optimizer"] += _data_parallel(config, architecture, gpu, work, engine)
    return seconds


def pass_seconds(config: Config, architecture: Architecture, gpu: GPU, one: Pass) -> float:
    """One pass over a batch, its collectives and pipeline bubble included."""
    model = config.model
    pp, virtual = model.pipeline_model_parallel_size, model.virtual_pipeline_model_parallel_size or 1
    world = config.trainer.num_nodes * config.trainer.devices
    again = 4 / 3 if one.backward and model.recompute_granularity == "full" else 1.0
    compute = one.flops(architecture) * again / (world * gpu.peak_flops(config.trainer.precision) * COMPUTE)
    number = micro_batches(config, one)
    kernels = KERNELS * (1 + 2 * one.backward) * again * architecture.num_hidden_layers / pp * number * KERNEL
    rate = _rate(gpu, wire(config, model.tensor_model_parallel_size))
    tensor = tensor_traffic(config, architecture, one) / rate
    sends = pipeline_traffic(config, architecture, one) / _rate(gpu, wire(config, world))
    # Kernels are queued ahead, so their start costs only where there is little to compute.
    return (max(compute, kernels) + tensor) * (1 + (pp - 1) / (number * virtual)) + sends


def _rollout(config: Config, architecture: Architecture, gpu: GPU, work: Workload, engine: Engine) -> float:
    """Every engine decodes its share, one token of each live response a pass, the longest to its limit."""
    size, most = weight_bytes(config), config.rollout.longest
    share = work.rollouts / engine.engines
    held = max(1.0, engine.cache / (engine.token * (work.prompt + work.response)))
    live = min(share, config.rollout.max_num_seqs, held)
    if engine.weights:
        passes = max(1.0, share / live) * work.response + (most - work.response)
        weights, ranks = engine.weights, engine.ranks
    else:
        passes = ceil(share / config.rollout.max_num_seqs) * most
        tp = config.model.tensor_model_parallel_size
        weights, ranks = sum(map(sum, stages(architecture, config.model)[0])) * size, tp
    read = passes * weights + share * work.response * (work.prompt + work.response / 2) * engine.token
    memory = read / (gpu.memory_gbs * 1e9 * MEMORY)
    peak = ranks * gpu.peak_flops(config.trainer.precision) * COMPUTE
    compute = work.generation_flops(architecture) / engine.engines / peak
    # Samples of a prompt share its cache: read once.
    prefill = 2 * architecture.parameters * work.prompt * max(1.0, work.prompts / engine.engines) / peak
    return prefill + max(memory, compute) + passes * architecture.num_hidden_layers * _layer_overhead(config, engine, ranks)


def _layer_overhead(config: Config, engine: Engine, ranks: int) -> float:
    if not engine.weights:
        return MEGATRON_LAYER
    started = KERNELS * (KERNEL if config.rollout.enforce_eager else GRAPH_KERNEL)
    return started + (2 * COLLECTIVE if ranks > 1 else 0.0)


def _sync(config: Config, architecture: Architecture, gpu: GPU, engine: Engine) -> float:
    return sum(one.bytes / _rate(gpu, one.wire) for one in sync_traffic(config, architecture, engine))


def _optimizer(config: Config, architecture: Architecture, gpu: GPU, optim: OptimConfig, output: bool) -> float:
    """Adam reads gradient, weight and two moments, and writes three of them and the model's weight."""
    ranks = optimizer_ranks(config, optim)
    chunks = stages(architecture, config.model, output=output)[0]
    shard = buffer_elements(chunks, ranks, optim.use_distributed_optimizer) / ranks
    away = optim.optimizer_offload_fraction if optim.optimizer_cpu_offload else 0.0
    moved = shard * (28 + weight_bytes(config))
    here = (1 - away) * moved / (gpu.memory_gbs * 1e9 * MEMORY)
    there = away * (moved / (HOST_MEMORY_GBS * 1e9) + shard * 8 / (gpu.host_gbs * 1e9 * LINK))
    return here + there


def _data_parallel(config: Config, architecture: Architecture, gpu: GPU, work: Workload, engine: Engine) -> float:
    if data_parallel_size(config) * config.model.context_parallel_size == 1:
        return 0.0
    seconds = 0.0
    for one in traffic(config, architecture, work, engine):
        if one.kind.startswith("data parallel"):
            overlapped = config.optim.overlap_param_gather if "parameters" in one.kind else config.optim.overlap_grad_reduce
            seconds += one.bytes / _rate(gpu, one.wire) * (1 - HIDDEN if overlapped else 1)
    return seconds


def _rate(gpu: GPU, over: str) -> float:
    """Bytes a second."""
    return {"node": gpu.link_gbs * LINK, "network": gpu.network_gbs * LINK, "host": GLOO_GBS}[over] * 1e9
