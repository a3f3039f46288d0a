"""A model so small that the second of two data-parallel ranks holds nothing but padding of the optimiser's buffer."""

from __future__ import annotations

import resource
from pathlib import Path

import torch
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig

from nemo_amft.config.schema import ModelConfig, OptimConfig
from nemo_amft.models import offloading
from nemo_amft.models.checkpoints import Checkpoints, layout
from nemo_amft.models.trainable import TrainableModel, set_schedule
from nemo_amft.observe.files import UnwrittenError
from nemo_amft.parallel import groups


class FewWeights(MegatronModule):
    """48 weights; Megatron pads them to 128."""

    def __init__(self):
        super().__init__(TransformerConfig(num_layers=1, hidden_size=8, num_attention_heads=1))
        self.weight = torch.nn.Parameter(torch.arange(48.0).view(6, 8))  # a matrix, so that it decays


PLAIN = OptimConfig(lr=1e-3)


def _start(folder: str, optim: OptimConfig = PLAIN) -> tuple[TrainableModel, Checkpoints]:
    place = groups.initialize(ModelConfig(), seed=1)
    bf16 = optim.optimizer_cpu_offload  # meant for no other
    weights = FewWeights().bfloat16() if bf16 else FewWeights()
    model = TrainableModel([weights], ModelConfig(), optim, "bf16" if bf16 else "32", place)
    assert not optim.use_distributed_optimizer or place.rank == 0 or sum(p.numel() for p in model.main_parameters()) == 0
    return model, Checkpoints(Path(folder), 1, place)


def _step(model: TrainableModel, gradient: float) -> tuple[float, list[float]]:
    model.zero_gradients()
    model.chunks[0].module.weight.main_grad.fill_(gradient)
    model.finish_gradients()
    return model.step(), model.chunks[0].module.weight.flatten().tolist()


def save_after_one(folder: str, optim: OptimConfig = PLAIN) -> tuple[float, list[float]]:
    """A step, a checkpoint, and another step, whose gradient norm and weights are returned."""
    model, store = _start(folder, optim)
    _step(model, 0.5)
    store.save(1, {"policy": model}, {"layout": layout(store.place, model)}, {})
    return _step(model, -0.25)


def resume_after_one(folder: str) -> tuple[float, list[float]]:
    """The step after the checkpoint, in processes that have made none."""
    model, store = _start(folder)
    store.load(store.newest_intact(), {"policy": model})
    return _step(model, -0.25)


def resume_otherwise(folder: str, optim: OptimConfig) -> tuple[list[str], list[dict[str, float]], list[float]]:
    """The step after the checkpoint with other numbers for the optimiser: what was said of them, what its groups have at that
    step, and the weights after it."""
    model, store = _start(folder, optim)
    said: list[str] = []
    store.load(store.newest_intact(), {"policy": model}, said.append)
    set_schedule(model.scheduler(optim.lr, 0.0, 10, 0.0, "constant"), 1)
    groups_ = [group for member in model._optimizers() for group in member.optimizer.param_groups]
    return (
        said,
        [{name: group[name] for name in ("lr", "betas", "eps", "weight_decay")} for group in groups_],
        _step(model, -0.25)[1],
    )


def save_offloaded(folder: str, optim: OptimConfig) -> None:
    """A checkpoint before any step: on a CPU nothing is offloaded, and none can be made."""
    model, store = _start(folder, optim)
    store.save(0, {"policy": model}, {"layout": layout(store.place, model)}, {})


def resume_offloaded(folder: str, optim: OptimConfig) -> tuple[list, list]:
    """(betas, epsilon) of the groups of the optimiser, and of those of its parts, at the start of the step after."""
    model, store = _start(folder, optim)
    store.load(store.newest_intact(), {"policy": model})
    (hybrid,) = (offloading.hybrid_of(member) for member in model._optimizers())
    hybrid._sync_hdo_param_groups_to_sub_optimizers()
    parts = [group for part in hybrid.sub_optimizers for group in part.param_groups]
    return [(g["betas"], g["eps"]) for g in hybrid.param_groups], [(g["betas"], g["eps"]) for g in parts]


def save_onto_a_full_disk(folder: str, rank: int, room: int) -> str:
    """A checkpoint, and another for which `rank` has `room` bytes a file. Returns what is said of the second."""
    model, store = _start(folder)
    store.save(1, {"policy": model}, {"layout": layout(store.place, model)}, {})
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    if store.place.rank == rank:
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
    try:
        store.save(2, {"policy": model}, {"layout": layout(store.place, model)}, {})
    except UnwrittenError as error:
        return str(error)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    return "nothing"
