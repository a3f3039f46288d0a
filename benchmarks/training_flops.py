"""How much of the machine's matrix-product peak a training step reaches: `python benchmarks/training_flops.py`.

A policy of SmolLM2-135M's shape on two processes of one thread each, data parallel and tensor parallel, in fp32 and bf16. A
round is the peak (best of several square matrix products, both processes at once) and then one whole SFT update: forward,
backward, gradient reduction and optimiser. What counts is the median over rounds of the update's rate over that round's peak.
The same by CPU time instead of the clock's tells what a busy machine took away: it leaves out waiting, for others and for each
other. With --profile: where the time of one update goes, by operator.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
import torch.distributed as dist
from common import write_result
from shapes import SHAPES, demonstration_term, matmul_peak, model_flops, own_share, random_policy, schedule_of, sequences
from shapes import step_seconds as timed_step

from nemo_amft.config.schema import ModelConfig
from nemo_amft.parallel import groups

SHAPES_OF = {"dp2": "SmolLM2-135M", "tp2": "SmolLM2-135M, 8 heads"}
DTYPES = {"32": torch.float32, "bf16": torch.bfloat16}
SIZES = (1024, 1536, 2048)


def measure(options: argparse.Namespace) -> dict | None:
    """Body of a rank. Rank 0 returns the figures of the whole job."""
    tensor = 2 if options.layout == "tp2" else 1
    model = ModelConfig(tensor_model_parallel_size=tensor, micro_batch_size=options.micro_batch_size)
    place = groups.initialize(model, seed=1)
    shape = SHAPES[SHAPES_OF[options.layout]]
    policy = random_policy(shape, model, options.precision, place)
    drawn = sequences(options.sequences, options.length, shape.vocab_size, seed=3)
    term, work = own_share(demonstration_term(drawn), place), model_flops(shape, drawn)
    schedule = schedule_of(policy)
    timed_step(policy, schedule, term)  # threads, caches and buffers come to life
    rounds = []
    for _ in range(options.rounds):
        dist.barrier()
        peaks = torch.tensor(matmul_peak(DTYPES[options.precision], SIZES), dtype=torch.float64)
        dist.all_reduce(peaks)
        dist.barrier()
        cpu = time.process_time()
        seconds = torch.tensor(timed_step(policy, schedule, term), dtype=torch.float64)
        cpu_seconds = torch.tensor(time.process_time() - cpu, dtype=torch.float64)
        dist.all_reduce(seconds, dist.ReduceOp.MAX)
        dist.all_reduce(cpu_seconds)
        wall, peak, busy = seconds.item(), peaks.tolist(), cpu_seconds.item()
        rounds.append(
            {
                "seconds": wall,
                "flops": work / wall,
                "peak": peak[0],
                "flops_of_cpu_time": 2 * work / busy,
                "peak_of_cpu_time": peak[1],
            }
        )
    if options.profile:
        profile(policy, schedule, term, Path(options.profile), place.rank)
    return {"rounds": rounds, "model_flops": work, "tokens": sum(len(s.tokens) for s in drawn)} if place.is_main else None


def profile(policy, schedule, term, path: Path, rank: int) -> None:
    """One update under torch's profiler; rank 0 writes the table of operators by their own time."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], record_shapes=True) as found:
        timed_step(policy, schedule, term)
    if rank == 0:
        table = found.key_averages().table(sort_by="self_cpu_time_total", row_limit=40, max_name_column_width=60)
        shapes = found.key_averages(group_by_input_shape=True)
        by_shape = shapes.table(sort_by="self_cpu_time_total", row_limit=50, max_name_column_width=60)
        path.write_text(table + "\n" + by_shape)


def launch(options: argparse.Namespace, layout: str, precision: str) -> dict:
    """The figures of one case, from two processes of its own."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "result.json"
        command = [
            sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", __file__, "--rank-out",
            str(out), "--layout", layout, "--precision", precision, "--rounds", str(options.rounds), "--sequences",
            str(options.sequences), "--micro-batch-size", str(options.micro_batch_size), "--length", *map(str, options.length),
        ]  # fmt: skip
        if options.profile:
            command += ["--profile", f"{options.profile}_{layout}_{precision}.txt"]
        subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
        return json.loads(out.read_text())


def summary(found: dict) -> dict:
    """Medians over the rounds of one case."""
    rounds = found["rounds"]
    return {
        "GFLOP/s": statistics.median(r["flops"] for r in rounds) / 1e9,
        "peak GFLOP/s": statistics.median(r["peak"] for r in rounds) / 1e9,
        "share": statistics.median(r["flops"] / r["peak"] for r in rounds),
        "share by CPU time": statistics.median(r["flops_of_cpu_time"] / r["peak_of_cpu_time"] for r in rounds),
        "tokens/s": statistics.median(found["tokens"] / r["seconds"] for r in rounds),
    }


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layout", nargs="+", default=["dp2", "tp2"], choices=["dp2", "tp2"])
    parser.add_argument("--precision", nargs="+", default=["32", "bf16"], choices=["32", "bf16"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--sequences", type=int, default=16, help="of an update, over both processes")
    parser.add_argument("--micro-batch-size", type=int, default=4)
    parser.add_argument("--length", type=int, nargs=2, default=(192, 320), help="shortest and longest sequence, tokens")
    parser.add_argument("--profile", metavar="PREFIX", help="also write PREFIX_LAYOUT_PRECISION.txt")
    parser.add_argument("--rank-out", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    options = parse()
    if options.rank_out:
        options.layout, options.precision, options.length = options.layout[0], options.precision[0], tuple(options.length)
        found = measure(options)
        if found is not None:
            Path(options.rank_out).write_text(json.dumps(found))
        groups.shutdown()
        return
    cases, rows = {}, {}
    for layout in options.layout:
        for precision in options.precision:
            cases[f"{layout} {precision}"] = found = launch(options, layout, precision)
            rows[f"{layout} {precision}"] = row = summary(found)
            print(f"{layout} {precision:<5}" + "".join(f"  {name} {value:9.3f}" for name, value in row.items()), flush=True)
    settings = {name: getattr(options, name) for name in ("sequences", "micro_batch_size", "length", "rounds")}
    print(write_result("training_flops", {"shapes": SHAPES_OF, "settings": settings, "medians": rows, "cases": cases}))


if __name__ == "__main__":
    main()
