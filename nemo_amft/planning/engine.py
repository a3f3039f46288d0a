"""The rollout engine's memory while it is awake, and what its key-value cache holds."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from nemo_amft.config.architecture import Architecture
from nemo_amft.config.rules import data_parallel_size
from nemo_amft.config.schema import Config
from nemo_amft.planning.hardware import GPU
from nemo_amft.planning.memory import GIB, weight_bytes
from nemo_amft.planning.parameters import layer_tensors, padded_vocabulary

BATCHED_TOKENS = 8192
"""Tokens of one pass of vLLM while it reads prompts (its default for a GPU of 80 GB, offline)."""


@dataclass(frozen=True)
class Engine:
    """Bytes of one rank's part of an engine."""

    ranks: int
    """Processes that share one engine."""
    engines: int
    weights: int
    """0 where the engine decodes on the policy's own."""
    workspace: int
    """Activations of a pass and the sampler's copies of the logits."""
    cache: int
    token: int
    """Cache of one token."""
    longest: int
    """Tokens of a full-length sequence."""
    bucket: int
    """What a weight sync takes beside both models."""

    @property
    def total(self) -> int:
        """Awake, weights and cache there."""
        return self.weights + self.workspace + self.cache

    @property
    def full_sequences(self) -> int:
        """Full-length sequences that the cache holds at once."""
        return max(0, self.cache // (self.token * self.longest))


def engine_memory(config: Config, architecture: Architecture, gpu: GPU | None) -> Engine:
    """`gpu` None: a CPU, whose engine has rollout.kv_cache_gb."""
    rollout, size = config.rollout, weight_bytes(config)
    longest = config.data.max_prompt_tokens + rollout.longest
    world = config.trainer.num_nodes * config.trainer.devices
    sequences = config.data.prompts_per_step * config.data.samples_per_prompt
    if rollout.engine == "megatron":
        tp = config.model.tensor_model_parallel_size
        token = _token_bytes(architecture, tp, size)
        replicas = data_parallel_size(config)
        batch = min(rollout.max_num_seqs, ceil(sequences / replicas))
        # Gathered logits in fp32 and their log-softmax.
        workspace = 2 * 4 * batch * architecture.vocab_size
        return Engine(world // replicas, replicas, 0, workspace, batch * longest * token, token, longest, 0)
    tp = rollout.tensor_model_parallel_size
    token = _token_bytes(architecture, tp, size)
    weights = engine_weights(architecture, tp) * size
    workspace = _workspace(config, architecture, tp, size)
    if gpu is None:
        cache = int(rollout.kv_cache_gb * GIB)
    else:
        cache = max(0, int(rollout.gpu_memory_utilization * gpu.memory_gib * GIB) - weights - workspace)
    return Engine(tp, world // tp, weights, workspace, cache, token, longest, _bucket(config, architecture, size))


def engine_weights(architecture: Architecture, tp: int) -> int:
    """Parameters of one rank of a vLLM engine: key-value heads are doubled where there are fewer of them than ranks."""
    a = architecture
    extra = max(0, tp - a.num_key_value_heads) * 2 * a.head_dim * a.hidden_size // tp
    matrices = 1 if a.tie_word_embeddings else 2
    vocabulary = padded_vocabulary(a, tp) // tp * a.hidden_size
    return a.num_hidden_layers * (sum(layer_tensors(a, tp)) + extra) + matrices * vocabulary + a.hidden_size


def _bucket(config: Config, architecture: Architecture, size: int) -> int:
    """models/weight_buckets.py: one buffer of the bucket's size, or the largest parameter's where that is more; and that
    parameter once more, put together. A model that is on one rank is read in place."""
    model = config.model
    if model.tensor_model_parallel_size == model.pipeline_model_parallel_size == 1:
        return 0
    largest = size * max(architecture.embedding_parameters, 2 * architecture.hidden_size * architecture.intermediate_size)
    return min(max(config.rollout.sync_bucket_mb * 2**20, largest), architecture.parameters * size) + largest


def _token_bytes(architecture: Architecture, tp: int, size: int) -> int:
    heads = max(1, architecture.num_key_value_heads // tp)
    return 2 * architecture.num_hidden_layers * heads * architecture.head_dim * size


def _workspace(config: Config, architecture: Architecture, tp: int, size: int) -> int:
    a = architecture
    inner = (a.query_size + 2 * a.key_value_size + 3 * a.intermediate_size) // tp
    tokens = min(BATCHED_TOKENS, config.rollout.max_num_seqs * (config.data.max_prompt_tokens + config.rollout.longest))
    # The sampler holds logits in fp32, their log-softmax and a copy.
    return tokens * (4 * a.hidden_size + inner) * size + 3 * 4 * config.rollout.max_num_seqs * a.vocab_size
