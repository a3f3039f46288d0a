"""Puts the policy's weights into a vLLM model that is up, inside its worker. Written against vLLM 0.32.

vLLM's own `reload_weights` loads every tensor twice (once to count it), allocates each layer anew, and on a CPU packs the
embeddings for matrix products that never happen; but it does not pack a tied output layer. What is here loads once, by the same
weight loaders. Only a CPU then needs more: it multiplies by packed copies, which are made again from the new weights.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from nemo_amft.parallel import platform


@torch.no_grad()
def load(worker: Any, weights: Iterator[tuple[str, Tensor]]) -> None:
    """Copy `weights`, (hub name, whole tensor), into the worker's model, each rank of an engine its own part.

    Raises:
        RuntimeError: a parameter of the model has got no weights.
    """
    model = worker.model_runner.get_model()
    stream = weights if platform.is_gpu() else _packed(model, weights)
    loaded = model.load_weights(stream)
    if not platform.is_gpu():
        _pack_head(model)
    missing = {name for name, _ in model.named_parameters()} - loaded
    if missing:
        raise RuntimeError(f"weight sync: vLLM has {len(missing)} parameters that the policy gave nothing for: {min(missing)}")


def _packed(model: torch.nn.Module, weights: Iterator[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    """Hand `weights` on to `model.load_weights`, and around each linear layer's turn make it loadable and pack it.

    A packed layer's own parameter is empty. It gets back the one it had when the model was built, on memory that all layers
    share in turn, and loses it again when vLLM packs it. The loader takes the next tensor only when it is done with the one
    before, and a layer's tensors follow each other.
    """
    from vllm.model_executor.model_loader.reload.layerwise import get_layerwise_info

    layers = {f"{name}.weight": layer for name, layer in model.named_modules() if _is_packed(layer)}
    templates = {name: get_layerwise_info(layer).restore_metadata[0]["weight"] for name, layer in layers.items()}
    room = torch.empty(max((t.nbytes for t in templates.values()), default=0), dtype=torch.uint8)
    begun = None
    for hub_name, tensor in weights:
        (name,) = model.hf_to_vllm_mapper.apply_list([hub_name])
        layer = layers.get(name)
        if begun not in (None, layer):
            _pack(begun)
        if layer not in (None, begun):
            layer.weight = _parameter_like(templates[name], layer, tensor if name == hub_name else None, room)
        yield hub_name, tensor
        begun = layer
        if layer is not None and layer.weight.data_ptr() == tensor.data_ptr():  # whose values are gone with the next tensor
            _pack(layer)
            begun = None
    if begun is not None:
        _pack(begun)


def _is_packed(layer: torch.nn.Module) -> bool:
    weight = getattr(layer, "weight", None)
    return hasattr(layer, "cpu_linear") and weight is not None and weight.numel() == 0


def _parameter_like(template: Tensor, layer: torch.nn.Module, whole: Tensor | None, room: Tensor) -> Tensor:
    """The layer's parameter as vLLM made it, with its loader, on `room`; or on `whole` itself, where the one tensor that will
    be loaded is all of it."""
    from vllm.model_executor.model_loader.reload.sanitize import restore_layer_refs
    from vllm.platforms import current_platform

    if current_platform.is_zen_cpu():  # its kernels may go on reading the very memory they were given
        weight = torch.empty(template.shape, dtype=template.dtype)
    elif whole is not None and (whole.shape, whole.dtype, whole.is_contiguous()) == (template.shape, template.dtype, True):
        weight = whole.view(whole.shape)  # loading copies it onto itself, which torch leaves out
    else:
        weight = room[: template.nbytes].view(template.dtype).view(template.shape)
    weight.__class__ = template.__class__
    weight.__dict__ = template.__dict__.copy()
    return restore_layer_refs(weight, layer)


def _pack(layer: torch.nn.Module) -> None:
    """Let vLLM pack the layer's weight. The old pack goes first: the new one then takes its memory."""
    layer.cpu_linear = torch.nn.functional.linear
    layer.quant_method.process_weights_after_loading(layer)


def _pack_head(model: torch.nn.Module) -> None:
    """Pack the output layer, which keeps its weights beside (they may be the embeddings'), and drop the embeddings' pack."""
    model.model.embed_tokens.cpu_linear = torch.nn.functional.linear
    _pack(model.lm_head)
