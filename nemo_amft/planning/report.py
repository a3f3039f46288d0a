"""The plan as text."""

from __future__ import annotations

from collections.abc import Iterator

from nemo_amft.config.architecture import Architecture
from nemo_amft.config.schema import Config
from nemo_amft.planning.activations import largest_micro_batch
from nemo_amft.planning.communication import traffic
from nemo_amft.planning.engine import Engine
from nemo_amft.planning.footprint import RESERVED, Footprint, host_memory
from nemo_amft.planning.hardware import GPU
from nemo_amft.planning.search import HEADER, Candidate, columns
from nemo_amft.planning.tables import Row, gib, grid, pflop, rows
from nemo_amft.planning.timing import step_seconds
from nemo_amft.planning.workload import Workload


def memory(config: Config, architecture: Architecture, found: Footprint, gpu: GPU | None) -> Iterator[str]:
    """Sections on memory."""
    static = found.static
    parameters = (
        f"{architecture.parameters:,}, of which {static.parameters:,} on a rank of the fullest pipeline stage, {found.stage}"
    )
    yield rows("model", [("parameters", parameters)])
    held = [(name, gib(size)) for name, size in static.device.items()]
    held.append(("total", gib(static.total)))
    held += [(f"in host memory: {name}", gib(size)) for name, size in static.host.items()]
    yield rows("static memory of that rank", held)
    micro = largest_micro_batch(config)
    parts = [("policy", found.policy)] + ([("critic", found.critic)] if found.critic else [])
    taken = [
        (f"{name}, {what}", gib(getattr(part, what)))
        for name, part in parts
        for what in ("kept", "recomputed", "working")
        if getattr(part, what)
    ]
    yield rows(f"activations, of a micro-batch of {micro.positions:,} positions", taken)
    yield rows(_engine_title(config, found.engine), list(_engine(config, found.engine, gpu)))
    yield rows("memory in each phase" + _limit(config, found, gpu), [(name, gib(size)) for name, size in found.phases.items()])


def _engine_title(config: Config, engine: Engine) -> str:
    each = f"{engine.engines} of {engine.ranks} processes" if engine.ranks > 1 else f"{engine.engines} of one process"
    return f"rollout engines ({config.rollout.engine}), {each}; a rank, awake"


def _engine(config: Config, engine: Engine, gpu: GPU | None) -> Iterator[Row]:
    if engine.weights:
        yield "weights", gib(engine.weights)
    yield "workspace", gib(engine.workspace)
    yield "key-value cache", f"{gib(engine.cache)}: {engine.full_sequences:,} sequences of {engine.longest:,} tokens at once"
    if engine.bucket:
        yield "beside it, during a weight sync", gib(engine.bucket)


def _limit(config: Config, found: Footprint, gpu: GPU | None) -> str:
    if gpu is not None:
        return f", of {gib(found.limit or 0)} on {gpu.name}, {gib(RESERVED)} set aside in each"
    devices = config.trainer.devices
    total = gib(found.peak * devices)
    who = f"{devices} processes take" if devices > 1 else "one process takes"
    return f"; {who} {total} of this machine's {gib(host_memory())}"


def work(
    config: Config, architecture: Architecture, found: Footprint, load: Workload, fill: float, gpu: GPU | None
) -> Iterator[str]:
    """Sections on an average step: FLOPs, traffic and, on a GPU, seconds."""
    lengths = f"an average step: prompts of {load.prompt:,} tokens, responses of {load.response:,} (fill={fill:g})"
    by_phase = {one.phase: 0.0 for one in load.passes}
    for one in load.passes:
        by_phase[one.phase] += one.flops(architecture)
    flops = [("generation", pflop(load.generation_flops(architecture))), ("training", pflop(load.training_flops(architecture)))]
    flops += [(f"  of it {name}", pflop(size)) for name, size in by_phase.items()]
    yield rows(f"model FLOPs of {lengths}", flops)
    wires = {"node": "within a node", "network": "between nodes", "host": "host tensors"}
    sent = [(one.kind, f"{gib(one.bytes)} {wires[one.wire]}") for one in traffic(config, architecture, load, found.engine)]
    if sent:
        yield rows("bytes that a rank sends in it", sent)
    if gpu is not None:
        seconds = step_seconds(config, architecture, gpu, load, found.engine)
        total = sum(seconds.values())
        world = config.trainer.num_nodes * config.trainer.devices
        timed = [(name, f"{value:.1f} s") for name, value in seconds.items()]
        # Of the passes alone, as perf/mfu has it.
        training = sum(seconds[one] for one in by_phase) + seconds["optimizer"]
        mfu = load.training_flops(architecture) / (training * world * gpu.peak_flops(config.trainer.precision))
        timed += [("total", f"{total:.1f} s (training at {mfu:.0%} of the peak)")]
        yield rows("estimated seconds of it (planning/timing.py has the assumptions)", timed)


def found_layouts(found: list[Candidate], number: int) -> str:
    """The table of --search and the overrides for its first row."""
    table = grid(f"fastest of {number} layouts that fit", HEADER, [columns(one) for one in found])
    best = " ".join(found[0].changes) or "nothing to change"
    return f"{table}\nfor the first: {best}"
