"""Weights in the hub's format, in and out of a Megatron model on any layout, tensor by tensor."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from torch import Tensor
from transformers import PreTrainedConfig

from nemo_amft.models.architecture import Architecture
from nemo_amft.models.critic_model import ValueModel
from nemo_amft.models.hub_model import HubModel
from nemo_amft.models.hub_names import EMBEDDING, Mapping, from_shards, mapping_of, to_shard
from nemo_amft.models.hub_reader import HubReader
from nemo_amft.models.hub_writer import WRITE_ERRORS, HubWriter
from nemo_amft.models.weight_buckets import DEFAULT_BYTES, gathered


@torch.no_grad()
def load_hub_weights(chunks: Sequence[torch.nn.Module], hub_config: PreTrainedConfig, folder: Path) -> None:
    """Fill this rank's chunks (wrapped or not) from the safetensors in `folder`, converted to the parameters' dtype.

    A critic takes the body only: its value head stays as it is. Rows that pad the vocabulary become zero. No collective.

    Raises:
        UserError: a tensor is missing, unexpected, quantised or of another shape than the config says; names tensor and file.
    """
    architecture = Architecture.from_hub(hub_config)
    body_only = any(isinstance(unwrap(chunk), ValueModel) for chunk in chunks)
    with contextlib.ExitStack() as stack:
        files = HubReader(Path(folder), stack)
        files.check(architecture, body_only)
        tp_group = parallel_state.get_tensor_model_parallel_group()
        for name, parameter in _parameters(chunks):
            mapping = _mapping_with_ties(name, architecture)
            tensors = [files.read(hub) for hub in mapping.hub]
            parameter.copy_(to_shard(mapping, tensors, architecture, tp_group.size(), tp_group.rank()))


def export_hub_weights(
    chunks: Sequence[torch.nn.Module], hub_config: PreTrainedConfig, bucket_bytes: int = DEFAULT_BYTES
) -> Iterator[tuple[str, Tensor]]:
    """Yield (hub name, whole tensor on this rank's device) for every tensor of the policy, on every rank in the same order.

    Collective over the tensor- and pipeline-parallel groups, and so to be exhausted by all ranks alike. At most `bucket_bytes`
    are gathered at one time (or one parameter, if that is more), and one parameter's tensors are put together from them. They
    may alias the parameter or what was gathered: copy what is to outlive the next step.
    """
    architecture = Architecture.from_hub(hub_config)
    own = {name: parameter.detach() for name, parameter in _parameters(chunks) if not _is_tied_copy(name, architecture)}
    tp_group = parallel_state.get_tensor_model_parallel_group()
    pp_group = parallel_state.get_pipeline_model_parallel_group()
    for name, shards in gathered(own, tp_group, pp_group, bucket_bytes):
        mapping = mapping_of(name)
        yield from zip(mapping.hub, from_shards(mapping, shards, architecture), strict=True)


def save_hub_model(chunks: Sequence[torch.nn.Module], hub: HubModel, folder: Path) -> None:
    """Write safetensors in the parameters' dtype, and config.json, tokenizer files and generation_config.json of `hub`, to
    `folder`. transformers 4 and 5 read the same from it.

    Every rank calls it; rank 0 writes, to a folder beside it that is renamed when complete. An earlier `folder` is replaced.

    Raises:
        OSError: rank 0 could not write; raised on every rank once the collective is over.
    """
    folder = Path(folder)
    writes = not dist.is_initialized() or dist.get_rank() == 0
    writer, failure = None, None
    try:
        writer = HubWriter(folder) if writes else None
    except WRITE_ERRORS as error:
        failure = error
    for name, tensor in export_hub_weights(chunks, hub.config):
        if writer is not None and failure is None:
            try:
                writer.add(name, tensor)
            except WRITE_ERRORS as error:  # the other ranks are in the next collective: go on with them, complain after
                failure = error
    if writer is not None and failure is None:
        try:
            writer.finish(hub)
        except WRITE_ERRORS as error:
            failure = error
    if writer is not None and failure is not None:
        writer.give_up()
    _raise_everywhere(failure)


def unwrap(module: torch.nn.Module) -> torch.nn.Module:
    """The model inside DistributedDataParallel and Float16Module."""
    while hasattr(module, "module"):
        module = module.module
    return module


def _parameters(chunks: Sequence[torch.nn.Module]) -> Iterator[tuple[str, torch.nn.Parameter]]:
    """(name, parameter) of this rank, layers numbered over the whole model; a critic's value head left out."""
    for chunk in map(unwrap, chunks):
        first_layer = chunk.decoder.layers[0].layer_number - 1 if len(chunk.decoder.layers) else 0
        for name, parameter in chunk.named_parameters():
            if name == "output_layer.weight" and isinstance(chunk, ValueModel):
                continue
            head, separator, tail = name.partition("decoder.layers.")
            if separator:
                local, _, rest = tail.partition(".")
                name = f"{head}{separator}{int(local) + first_layer}.{rest}"
            yield name, parameter


def _is_tied_copy(name: str, architecture: Architecture) -> bool:
    """Whether this is the last pipeline stage's own copy of the input embedding."""
    return name == "output_layer.weight" and architecture.tied_embeddings


def _mapping_with_ties(name: str, architecture: Architecture) -> Mapping:
    return Mapping("vocabulary", (EMBEDDING,)) if _is_tied_copy(name, architecture) else mapping_of(name)


def _raise_everywhere(failure: Exception | None) -> None:
    """Raise rank 0's failure on every rank; without one, return when the folder is in place."""
    message = [None if failure is None else str(failure)]
    if dist.is_initialized():
        dist.broadcast_object_list(message, src=0)
    if failure is not None:
        raise failure
    if message[0] is not None:
        raise OSError(f"rank 0: {message[0]}")
