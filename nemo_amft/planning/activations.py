"""What the largest micro-batch leaves behind for its backward pass, and what the passes need beside it.

The count of Korthikanti et al. 2022 (arXiv 2205.05198, section 4) made anew for this project's models: RMSNorm, gated MLP,
grouped heads, fused attention (no scores are kept), no dropout, and an output layer that keeps hidden states of trained
positions instead of logits. Which tensors autograd keeps was read off the models on a CPU, where
tests/parallel/test_plan_memory.py compares; for a GPU's fused kernels it was read off their code.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import Literal

from nemo_amft.config.architecture import Architecture
from nemo_amft.config.rules import data_parallel_size, lookup
from nemo_amft.config.schema import Config
from nemo_amft.planning.memory import weight_bytes
from nemo_amft.planning.parameters import padded_vocabulary

Implementation = Literal["cpu", "local", "transformer_engine"]


@dataclass(frozen=True)
class Micro:
    """A micro-batch as one context-parallel rank computes it."""

    positions: int
    longest: int
    """Positions of one sequence."""
    trained: int
    """Positions that pass through the output layer."""


@dataclass(frozen=True)
class Activations:
    """Bytes on one rank."""

    kept: int
    """Kept for the backward passes of all micro-batches in flight."""
    recomputed: int
    """Computed again at one time, where recomputation is on, beyond what the backward pass has freed by then."""
    working: int
    """Beside it for a moment: gradients of activations, one weight's gradient, a chunk of logits."""

    @property
    def total(self) -> int:
        return self.kept + self.recomputed + self.working


def largest_micro_batch(config: Config) -> Micro:
    """The largest that full-length sequences make."""
    data, model = config.data, config.model
    response = max(config.rollout.longest, data.max_demonstration_tokens)
    multiple = model.tensor_model_parallel_size if model.sequence_parallel else 1
    longest = -(-(data.max_prompt_tokens + response - 1) // multiple) * multiple
    share = ceil(
        max(data.prompts_per_step * data.samples_per_prompt, data.demonstrations_per_step) / data_parallel_size(config)
    )
    count = model.micro_batch_size if model.micro_batch_tokens is None else model.micro_batch_tokens // longest
    count = max(1, min(count, share))
    trained = count * min(response, longest)
    cp = model.context_parallel_size
    return Micro(ceil(count * longest / cp), ceil(longest / cp), ceil(trained / cp))


def activations(
    config: Config, architecture: Architecture, stage: int, implementation: Implementation, *, output: bool = True,
    micro: Micro | None = None,
) -> Activations:  # fmt: skip
    """Of a rank of pipeline stage `stage`, training the policy (or with output=False the critic) on `micro`, default the
    largest."""
    a, model = architecture, config.model
    tp, pp = model.tensor_model_parallel_size, model.pipeline_model_parallel_size
    virtual = model.virtual_pipeline_model_parallel_size or 1
    size = weight_bytes(config)
    micro = micro or largest_micro_batch(config)
    layer = layer_bytes(config, a, implementation, micro)
    boundary = micro.positions * a.hidden_size * size // (tp if model.sequence_parallel else 1)
    stack, again, freed = _stack(config, a.num_hidden_layers // (pp * virtual), layer, boundary)
    kept = _in_flight(config, stage, virtual) * (stack + (boundary if stage < pp - 1 else 0))
    if stage == pp - 1:
        # Final norm, whose output nothing keeps, and the hidden states that meet the output layer.
        end = boundary // size * (8 if implementation == "cpu" else size)
        end += micro.trained * a.hidden_size * size if output else boundary * 4 // size
        kept, freed = kept + end, freed + end
    again = max(0, again - freed)
    moments = [again + _layer_backward(config, a, micro, boundary)]
    if stage == pp - 1 and output:  # nothing is recomputed yet when the output layer runs
        moments.append(_output_layer(config, a, micro, on_cpu=implementation == "cpu"))
    return Activations(kept, again, max(moments) - again)


def layer_bytes(config: Config, architecture: Architecture, implementation: Implementation, micro: Micro) -> int:
    """What one layer keeps of a micro-batch where nothing is recomputed."""
    a, tp, size = architecture, config.model.tensor_model_parallel_size, weight_bytes(config)
    split = tp if config.model.sequence_parallel else 1
    on_cpu = implementation == "cpu"
    # Each norm its input, its output and a scale; torch on a CPU input and normalised input in fp32, and its output.
    norms = 2 * (((8 if on_cpu else size) + size) * a.hidden_size + 4) / split
    # Query, key and value as projected (values are a view of it), query and key rotated, the result, log-sum-exp per head.
    # Full-length sequences are packed as they are padded: the local attention copies only sequences that differ in length.
    packs = config.model.sequence_packing
    attention = (3 * (a.query_size + a.key_value_size) * size + 4 * a.num_attention_heads) / tp
    if a.model_type == "qwen3":  # norms of query and key
        attention += (8 if on_cpu else size) * (a.query_size + a.key_value_size) / tp
    # Gate and value, and their product; unfused also the activated gate and a copy of the value.
    mlp = (5 if on_cpu else 3) * a.intermediate_size * size / tp
    # Cosines and sines, for query and key: of a packed position, or of one all sequences share. Transformer Engine's rotation
    # computes them itself.
    rotated = micro.positions if packs else micro.longest
    rotation = 0 if implementation == "transformer_engine" else 4 * a.head_dim * size * rotated
    return int(micro.positions * (norms + attention + mlp) + rotation)


def _stack(config: Config, layers: int, layer: int, boundary: int) -> tuple[int, int, int]:
    """Bytes that a chunk's layers keep of one micro-batch, what the backward pass computes again of it at one time, and what
    it has freed by then."""
    model = config.model
    if model.recompute_granularity != "full":
        return layers * layer, 0, 0  # selective recomputes the attention, whose scores the fused kernel never kept
    units = model.recompute_num_layers or 1
    if model.recompute_method == "block":  # the first layers, which the backward pass meets last
        whole = (layers - min(units, layers)) * layer
        return min(units, layers) * boundary + whole, layer - boundary, whole
    return ceil(layers / units) * boundary, min(units, layers) * layer - boundary, 0


def _in_flight(config: Config, stage: int, virtual: int) -> int:
    """Chunks' micro-batches whose backward pass is still to come, at most (Megatron's 1F1B and interleaved schedules)."""
    pp = config.model.pipeline_model_parallel_size
    if virtual == 1:
        return pp - stage
    return (pp - stage - 1) * 2 + (virtual - 1) * pp + 1


def _layer_backward(config: Config, architecture: Architecture, micro: Micro, boundary: int) -> int:
    """Gradients of the MLP's activations and of the residual, and of the largest matrix."""
    a, tp, size = architecture, config.model.tensor_model_parallel_size, weight_bytes(config)
    activations_ = micro.positions * 3 * a.intermediate_size // tp * size + 2 * boundary
    return activations_ + 2 * a.intermediate_size // tp * a.hidden_size * size


def _output_layer(config: Config, architecture: Architecture, micro: Micro, *, on_cpu: bool) -> int:
    """models/logprob.py: copies of a chunk's logits, forward and backward, and the matrix's gradient in fp32."""
    a, tp, half = architecture, config.model.tensor_model_parallel_size, weight_bytes(config) == 2
    rows = padded_vocabulary(a, tp) // tp
    chunk = 4 * rows * min(config.model.logprob_chunk_tokens, micro.trained)
    another = micro.trained > config.model.logprob_chunk_tokens  # the last chunk's are still there when the next one's are made
    forward = 3 * chunk  # logits, their exponentials, the products of both
    gradient = 4 * rows * a.hidden_size
    if half:
        # Copies in bf16 of logits and of the product that is added to the gradient; a CPU casts that one back first.
        product = gradient // 2 + (gradient if on_cpu else 0)
        backward = gradient + max(3 * chunk if another else 0, chunk * 3 // 2 + product)
    else:
        backward = gradient + chunk * (2 if another else 1)
    if lookup(config, "method.rl.entropy_coef"):
        backward += chunk  # probabilities
    return max(forward, backward + micro.trained * a.hidden_size * weight_bytes(config))
