"""Every layout of the same processes, the fitting ones by estimated step time."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import floor

from nemo_amft.config import rules
from nemo_amft.config.architecture import Architecture
from nemo_amft.config.schema import Config
from nemo_amft.planning.footprint import Footprint, footprint
from nemo_amft.planning.hardware import GPU
from nemo_amft.planning.memory import GIB
from nemo_amft.planning.refusals import shortage
from nemo_amft.planning.timing import step_seconds
from nemo_amft.planning.workload import workload

SHOWN = 8
UTILIZATION_STEP = 0.05


@dataclass(frozen=True)
class Candidate:
    """A layout that fits."""

    config: Config
    footprint: Footprint
    seconds: float
    changes: tuple[str, ...]
    """key=value overrides that lead from the given configuration to this one."""


def candidates(config: Config, architecture: Architecture, gpu: GPU, fill: float) -> list[Candidate]:
    """All layouts that divide and fit, the fastest first; of equal ones that with the fewest changes."""
    found = []
    for changed in variants(config, architecture):
        fitted = fit(changed, architecture, gpu)
        if fitted is None or any(rules.indivisible(fitted, architecture)):
            continue
        memory = footprint(fitted, architecture, gpu)
        seconds = sum(step_seconds(fitted, architecture, gpu, workload(fitted, fill), memory.engine).values())
        found.append(Candidate(fitted, memory, seconds, changes(config, fitted)))
    return sorted(found, key=lambda c: (c.seconds, len(c.changes)))


def allowed(found: list[Candidate], most: int = SHOWN) -> list[Candidate]:
    """The first of them that break no rule of config/rules.py."""
    kept = (c for c in found if not any(rules.violations(c.config, on_this_machine=False)))
    return list(itertools.islice(kept, most))


def variants(config: Config, architecture: Architecture) -> Iterator[Config]:
    """Tensor and pipeline sizes that divide the model and the job (tensor-parallel ranks within a node), sequence parallelism,
    the engine's size, the token budget and recomputation."""
    nodes, devices, cp = config.trainer.num_nodes, config.trainer.devices, config.model.context_parallel_size
    heads, groups = architecture.num_attention_heads, architecture.num_key_value_heads
    within = [n for n in range(1, devices + 1) if devices % n == 0]
    tensor = [n for n in within if heads % n == 0 and groups % n == 0 and nodes * devices % (n * cp) == 0]
    own = config.rollout.engine == "megatron"
    rollout = [1] if own else [n for n in within if heads % n == 0]
    stages = (
        [1] if own else [n for n in range(1, architecture.num_hidden_layers + 1) if architecture.num_hidden_layers % n == 0]
    )
    for tp, pp in itertools.product(tensor, stages):
        if nodes * devices % (tp * pp * cp):
            continue
        for sequence, engine, budget, again in itertools.product(
            (False, True) if tp > 1 else (False,), rollout, _budgets(config), _recompute(config)
        ):
            layout = {
                "tensor_model_parallel_size": tp,
                "pipeline_model_parallel_size": pp,
                # A number of chunks suits one number of stages; the plain schedule suits all.
                "virtual_pipeline_model_parallel_size": (
                    config.model.virtual_pipeline_model_parallel_size
                    if pp == config.model.pipeline_model_parallel_size
                    else None
                ),
                "sequence_parallel": sequence,
                "micro_batch_tokens": budget,
            }
            model = replace(config.model, **layout, **again)
            yield replace(config, model=model, rollout=replace(config.rollout, tensor_model_parallel_size=engine))


def fit(config: Config, architecture: Architecture, gpu: GPU) -> Config | None:
    """`config` with the engine's share of memory lowered or raised where it has to be; None where nothing helps."""
    memory = footprint(config, architecture, gpu)
    if shortage(config, memory) is None:
        return config
    if not memory.engine.weights or any(size > memory.limit for name, size in memory.phases.items() if name != "generation"):
        return None
    others = memory.phases["generation"] - memory.engine.total
    share = floor((1 - others / (gpu.memory_gib * GIB)) / UTILIZATION_STEP) * UTILIZATION_STEP
    if share <= 0:
        return None
    fitted = replace(config, rollout=replace(config.rollout, gpu_memory_utilization=round(min(share, 0.9), 2)))
    return fitted if shortage(fitted, footprint(fitted, architecture, gpu)) is None else None


def changes(before: Config, after: Config) -> tuple[str, ...]:
    """Overrides of the command line, in the order of the schema."""
    found = []
    for section in ("model", "rollout"):
        old, new = vars(getattr(before, section)), vars(getattr(after, section))
        found += [f"{section}.{key}={_text(new[key])}" for key in new if new[key] != old[key]]
    return tuple(found)


def _budgets(config: Config) -> list[int | None]:
    """The given cut, and token budgets of one, two and four full-length sequences."""
    longest = config.data.max_prompt_tokens + max(config.rollout.longest, config.data.max_demonstration_tokens)
    return list(dict.fromkeys([config.model.micro_batch_tokens, longest, 2 * longest, 4 * longest]))


def _recompute(config: Config) -> list[dict]:
    names = ("recompute_granularity", "recompute_method", "recompute_num_layers")
    given = {name: getattr(config.model, name) for name in names}
    none = dict.fromkeys(names)
    full = dict(zip(names, ("full", "uniform", 1), strict=True))
    return [given, *(option for option in (none, full) if option != given)]


def _text(value: object) -> str:
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)


HEADER = ("TP", "PP", "SP", "engine TP", "utilization", "micro-batch", "recompute", "s a step", "GiB")


def columns(found: Candidate) -> tuple[str, ...]:
    """A row under `HEADER`."""
    model, rollout = found.config.model, found.config.rollout
    tokens = model.micro_batch_tokens
    return (
        str(model.tensor_model_parallel_size),
        str(model.pipeline_model_parallel_size),
        "yes" if model.sequence_parallel else "no",
        str(rollout.tensor_model_parallel_size),
        f"{rollout.gpu_memory_utilization:.2f}",
        f"{model.micro_batch_size} sequences" if tokens is None else f"{tokens:,} tokens",
        model.recompute_granularity or "none",
        f"{found.seconds:.0f}",
        f"{found.footprint.peak / GIB:.1f}",
    )
