"""Print what a configuration will do, without GPU, model or data: batches, memory, FLOPs, communication, time, and refusals.

gpu=     plan for cpu, a100_40gb, a100_80gb, h100, h100_pcie, h200 or b200. Without it: a100_80gb where trainer.precision is
         bf16 or trainer.num_nodes above 1, else a CPU, for which nothing is refused for want of memory and no time estimated.
fill=    mean length of prompts, responses and demonstrations as a share of their limits, for FLOPs, communication and time
         (0.5). Memory is planned for sequences of full length.
--search propose layouts of the same number of GPUs: those that divide and fit, by estimated step time, with the overrides.

Any number of processes may be planned for. The exit status is 2 if the configuration would be refused.
"""

from __future__ import annotations

import sys

from nemo_amft.config import load, rules
from nemo_amft.config.architecture import Architecture, architecture_of
from nemo_amft.config.schema import Config
from nemo_amft.planning import batch_table, report
from nemo_amft.planning.footprint import footprint
from nemo_amft.planning.hardware import GPU
from nemo_amft.planning.refusals import divides, shortage
from nemo_amft.planning.search import allowed, candidates
from nemo_amft.planning.tables import gib, rows
from nemo_amft.planning.target import target
from nemo_amft.planning.workload import MEAN_FILL, workload
from nemo_amft.types import UserError


def plan(config: Config, gpu: str | None = None, fill: str | None = None, search: str | None = None) -> int:
    """Print the tables, then every refusal on stderr. Raises UserError for an argument of its own that is none."""
    device, share = target(config, gpu), _fill(fill)
    if search is not None and device is None:
        raise UserError("--search: needs a GPU to estimate times for, such as gpu=h100")
    refusals = list(rules.violations(config, on_this_machine=False))
    if not rules.ranges(config):
        architecture = architecture_of(config.model)
        if rules.data_parallel_size(config):
            print(rows("batches", batch_table(config)))
        if architecture is None:
            print(rows("model", [("parameters", f"unknown: the config of {config.model.path} is not here")]))
        else:
            short = _planned(config, architecture, device, share) if divides(config, architecture) else None
            refusals += [short] if short else []
            if device is not None and (refusals or search is not None):
                hint = _searched(config, architecture, device, share, show=search is not None)
                if refusals and (hint or short):
                    refusals[-1] += f"; {hint or 'no layout of these processes fits: more nodes, or GPUs with more memory'}"
    for refusal in refusals:
        print(f"nemo_amft: error: {refusal}", file=sys.stderr)
    return 2 if refusals else 0


def _planned(config: Config, architecture: Architecture, gpu: GPU | None, fill: float) -> str | None:
    """Print memory and work of a step; returns what does not fit."""
    found = footprint(config, architecture, gpu)
    print("\n".join(report.memory(config, architecture, found, gpu)))
    print("\n".join(report.work(config, architecture, found, workload(config, fill), fill, gpu)))
    return shortage(config, found)


def _searched(config: Config, architecture: Architecture, gpu: GPU, fill: float, *, show: bool) -> str | None:
    """Print the best layouts, if `show`. Returns the fewest overrides that make `config` one that fits, if there are any."""
    every = candidates(config, architecture, gpu, fill)
    best = allowed(every) if show else []
    if best:
        print(report.found_layouts(best, len(every)))
    nearest = allowed(sorted(every, key=lambda one: (len(one.changes), one.seconds)), 1)
    if not nearest or not nearest[0].changes:
        return None
    return f"try {' '.join(nearest[0].changes)} (peak {gib(nearest[0].footprint.peak)})"


def _fill(text: str | None) -> float:
    try:
        value = MEAN_FILL if text is None else float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 1:
        raise UserError(f"fill: found {text}, expected a number above 0 and at most 1")
    return value


def main() -> None:
    """Entry point."""
    arguments = ["search=" if argument == "--search" else argument for argument in sys.argv[1:]]
    load.main(plan, __doc__ or "", own=("gpu", "fill", "search"), check=False, arguments=arguments)


if __name__ == "__main__":
    main()
