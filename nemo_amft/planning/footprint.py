"""The fullest rank's memory in each phase of a step, against what its device has."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property

from nemo_amft.config.architecture import Architecture
from nemo_amft.config.schema import Config
from nemo_amft.planning.activations import Activations, Implementation, activations
from nemo_amft.planning.engine import Engine, engine_memory
from nemo_amft.planning.hardware import GPU
from nemo_amft.planning.memory import GIB, Static, static_memory, uses_critic

RESERVED = 4 * GIB
"""Assumed, not measured: CUDA context, NCCL's buffers, cuBLAS workspaces, captured graphs and the allocator's fragments."""


@dataclass(frozen=True)
class Footprint:
    """Bytes of one rank. `limit` is the device's memory; None on a CPU, whose memory processes share."""

    stage: int
    static: Static
    engine: Engine
    policy: Activations
    critic: Activations | None
    limit: int | None

    @cached_property
    def consumers(self) -> dict[str, dict[str, int]]:
        """By phase what takes memory in it; training state stays on the device in all of them."""
        resident = dict(self.static.device)
        awake = {"engine weights": self.engine.weights} if self.engine.weights else {}
        cache = {"engine workspace": self.engine.workspace, "engine cache": self.engine.cache}
        if self.limit is None:
            # A CPU's vLLM does not sleep; the policy's own decoding allocates its cache a batch.
            asleep = awake | cache if awake else {}
        else:
            resident["reserved"] = RESERVED
            asleep = {}
        phases = {}
        if awake:
            room = asleep if self.limit is None else awake
            phases["weight sync"] = resident | room | {"sync bucket": self.engine.bucket}
        phases["generation"] = resident | awake | cache
        for name, part in (("policy", self.policy), ("critic", self.critic)):
            if part is not None:
                phases[f"training, {name}"] = (
                    resident
                    | asleep
                    | {
                        f"{name} activations": part.kept + part.recomputed,
                        f"{name} working memory": part.working,
                    }
                )
        return phases

    @cached_property
    def phases(self) -> dict[str, int]:
        return {name: sum(parts.values()) for name, parts in self.consumers.items()}

    @property
    def peak(self) -> int:
        return max(self.phases.values())

    @property
    def fits(self) -> bool:
        return self.limit is None or self.peak <= self.limit

    @property
    def greatest(self) -> tuple[str, str, int]:
        """(phase, consumer, bytes): the greatest consumer of the fullest phase."""
        phase = max(self.phases, key=lambda name: self.phases[name])
        name, size = max(self.consumers[phase].items(), key=lambda item: item[1])
        return phase, name, size


def footprint(config: Config, architecture: Architecture, gpu: GPU | None) -> Footprint:
    """Of the pipeline stage whose ranks are fullest. `gpu` None plans for a CPU."""
    engine = engine_memory(config, architecture, gpu)
    limit = None if gpu is None else int(gpu.memory_gib * GIB)
    how = implementation(config, gpu)

    def of(stage: int) -> Footprint:
        return Footprint(
            stage,
            static_memory(config, architecture, stage),
            engine,
            activations(config, architecture, stage, how),
            activations(config, architecture, stage, how, output=False) if uses_critic(config) else None,
            limit,
        )

    # The ends hold the vocabulary, the first stage also most micro-batches; what lies between is never fullest.
    ends = {0, config.model.pipeline_model_parallel_size - 1}
    return max(map(of, sorted(ends)), key=lambda found: found.peak)


def implementation(config: Config, gpu: GPU | None) -> Implementation:
    """Which layers run. `auto` is taken for Transformer Engine on a GPU, as the container has it."""
    if gpu is None:
        return "cpu"
    return "local" if config.model.transformer_impl == "local" else "transformer_engine"


def host_memory() -> int:
    """Bytes of this machine's memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
