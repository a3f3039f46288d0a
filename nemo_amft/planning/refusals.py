"""Refusals that need the model's shape and a device: sizes that do not divide, memory that does not suffice."""

from __future__ import annotations

from nemo_amft.config.architecture import Architecture
from nemo_amft.config.rules import indivisible
from nemo_amft.config.schema import Config
from nemo_amft.planning.footprint import Footprint
from nemo_amft.planning.tables import gib


def divides(config: Config, architecture: Architecture) -> bool:
    """Whether the layout divides job and model, so that there is a share of a rank to be planned."""
    model, a = config.model, architecture
    tp, pp = model.tensor_model_parallel_size, model.pipeline_model_parallel_size
    world = config.trainer.num_nodes * config.trainer.devices
    shares = (
        (world, tp * pp * model.context_parallel_size),
        (world, config.rollout.tensor_model_parallel_size),
        (a.num_attention_heads, tp),
        (a.num_key_value_heads, tp),
        (a.num_hidden_layers, pp * (model.virtual_pipeline_model_parallel_size or 1)),
    )
    return not any(whole % parts for whole, parts in shares) and not any(indivisible(config, architecture))


def shortage(config: Config, found: Footprint) -> str | None:
    """Why a rank's memory does not suffice, without a suggestion; None where it does."""
    engine = found.engine
    if found.limit is not None and not found.fits:
        phase, name, size = found.greatest
        return (
            f"does not fit: {phase} takes {gib(found.peak)} of {gib(found.limit)} on the fullest rank; "
            f"greatest consumer: {name}, {gib(size)}"
        )
    if engine.weights and not engine.full_sequences:
        key = "kv_cache_gb" if found.limit is None else "gpu_memory_utilization"
        return (
            f"rollout.{key}: found {getattr(config.rollout, key)}, which leaves {gib(engine.cache)} of cache beside the "
            f"engine's weights; expected {gib(engine.token * engine.longest)} or more, a sequence of {engine.longest:,} tokens"
        )
    return None
