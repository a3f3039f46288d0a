"""A model so small that the second of two data-parallel ranks holds nothing but padding of the optimiser's buffer."""

from __future__ import annotations

from pathlib import Path

import torch
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig

from nemo_amft.config.schema import ModelConfig, OptimConfig
from nemo_amft.models.checkpoints import Checkpoints, layout
from nemo_amft.models.trainable import TrainableModel
from nemo_amft.parallel import groups


class FewWeights(MegatronModule):
    """48 weights; Megatron pads them to 128."""

    def __init__(self):
        super().__init__(TransformerConfig(num_layers=1, hidden_size=8, num_attention_heads=1))
        self.weight = torch.nn.Parameter(torch.arange(48.0))


def _start(folder: str) -> tuple[TrainableModel, Checkpoints]:
    place = groups.initialize(ModelConfig(), seed=1)
    model = TrainableModel([FewWeights()], ModelConfig(), OptimConfig(lr=1e-3), "32", place)
    assert place.rank == 0 or sum(p.numel() for p in model.main_parameters()) == 0
    return model, Checkpoints(Path(folder), 1, place)


def _step(model: TrainableModel, gradient: float) -> tuple[float, list[float]]:
    model.zero_gradients()
    model.chunks[0].module.weight.main_grad.fill_(gradient)
    model.finish_gradients()
    return model.step(), model.chunks[0].module.weight.tolist()


def save_after_one(folder: str) -> tuple[float, list[float]]:
    """A step, a checkpoint, and another step, whose gradient norm and weights are returned."""
    model, store = _start(folder)
    _step(model, 0.5)
    store.save(1, {"policy": model}, {"layout": layout(store.place, model)}, {})
    return _step(model, -0.25)


def resume_after_one(folder: str) -> tuple[float, list[float]]:
    """The step after the checkpoint, in processes that have made none."""
    model, store = _start(folder)
    store.load(store.newest_intact(), {"policy": model})
    return _step(model, -0.25)
