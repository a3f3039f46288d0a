"""Which parameters each rank holds, tensor by tensor, as models/builder.py lays them out."""

from __future__ import annotations

from functools import lru_cache
from math import ceil, lcm

from nemo_amft.config.architecture import Architecture
from nemo_amft.config.schema import ModelConfig

Chunk = tuple[int, ...]
"""Elements of each parameter of one pipeline chunk of one rank."""

VOCABULARY_MULTIPLE = 128
"""Rows of the embedding are padded to a multiple of it (models/architecture.py)."""


def stages(architecture: Architecture, model: ModelConfig, *, output: bool = True) -> tuple[tuple[Chunk, ...], ...]:
    """Chunks of a rank of each pipeline stage. `output`: the policy's output layer; without, the critic's value head."""
    virtual = model.virtual_pipeline_model_parallel_size or 1
    return _stages(architecture, model.tensor_model_parallel_size, model.pipeline_model_parallel_size, virtual, output)


@lru_cache(maxsize=256)
def _stages(architecture: Architecture, tp: int, pp: int, virtual: int, output: bool) -> tuple[tuple[Chunk, ...], ...]:
    vocabulary = padded_vocabulary(architecture, tp) // tp * architecture.hidden_size
    hidden = architecture.hidden_size
    layers = layer_tensors(architecture, tp) * (architecture.num_hidden_layers // (pp * virtual))

    def chunk(stage: int, round_: int) -> Chunk:
        first, last = stage == round_ == 0, stage == pp - 1 and round_ == virtual - 1
        before = (vocabulary,) if first else ()
        if not last:
            return (*before, *layers)
        # Tied embeddings need a copy of their own where the last stage is not the first.
        head = vocabulary if not (architecture.tie_word_embeddings and first) else 0
        after = (head if output else hidden,)
        return (*before, *layers, hidden, *(n for n in after if n))

    return tuple(tuple(chunk(stage, round_) for round_ in range(virtual)) for stage in range(pp))


def layer_tensors(architecture: Architecture, tp: int) -> Chunk:
    """Elements of each parameter of one layer on a tensor-parallel rank: norms whole, all else split."""
    a, hidden = architecture, architecture.hidden_size
    query_key_value = (a.query_size + 2 * a.key_value_size) // tp
    return (
        hidden,
        a.query_size // tp * hidden,
        query_key_value * hidden,
        *((query_key_value,) if a.model_type == "qwen2" else ()),
        *((a.head_dim, a.head_dim) if a.model_type == "qwen3" else ()),
        hidden,
        2 * a.intermediate_size // tp * hidden,
        a.intermediate_size // tp * hidden,
    )


def padded_vocabulary(architecture: Architecture, tp: int) -> int:
    """Rows of an embedding over all tensor-parallel ranks."""
    multiple = lcm(VOCABULARY_MULTIPLE, tp)
    return ceil(architecture.vocab_size / multiple) * multiple


def buffer_elements(chunks: tuple[Chunk, ...], ranks: int, distributed: bool) -> int:
    """Elements of a rank's contiguous parameter and gradient buffers.

    The distributed optimiser aligns each parameter to 64 elements and cuts a buffer into `ranks` equal shards (Megatron's
    param_and_grad_buffer.py); without it nothing is padded.
    """
    if not distributed:
        return sum(map(sum, chunks))
    multiple = lcm(ranks, 128)
    return sum(ceil(sum(-(-n // 64) * 64 for n in chunk) / multiple) * multiple for chunk in chunks)
