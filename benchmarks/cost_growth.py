"""How a training step's cost grows: `python benchmarks/cost_growth.py`, some ten minutes on two idle cores.

Seconds and peak memory of one SFT update on one process and one thread, in fp32, while sequence length, sequences a batch,
positions a micro-batch and parameters each grow alone. Every point is a process of its own, so that its memory is its own.
The exponent is the slope of a straight line through the logarithms of the points: 1 is proportional, 2 is square.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import socket
import statistics
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
from common import write_result
from shapes import demonstration_term, model_flops, random_policy, schedule_of, sequences, small_qwen2, step_seconds

from nemo_amft.config.architecture import from_hub
from nemo_amft.config.schema import ModelConfig
from nemo_amft.parallel import groups, platform

FIGURE = Path(__file__).parents[1] / "docs" / "cost_growth.png"


@dataclass(frozen=True)
class Point:
    """What is trained. All sequences have the same length; two thirds of their tokens are trained on."""

    length: int = 256
    batch: int = 8
    micro_batch: int = 4
    hidden: int = 256
    layers: int = 6


SWEEPS = {
    "sequence length, tokens": ("length", [Point(length=n, batch=2, micro_batch=2) for n in (128, 256, 512, 1024, 2048, 4096)]),
    "sequences a batch": ("batch", [Point(batch=n) for n in (4, 8, 16, 32)]),
    "sequences a micro-batch": ("micro_batch", [Point(batch=16, micro_batch=n) for n in (1, 2, 4, 8, 16)]),
    "parameters": ("parameters", [Point(hidden=h, layers=n) for h, n in ((128, 4), (256, 6), (384, 8), (512, 12), (768, 12))]),
}


def measure(point: Point, repeats: int) -> dict[str, float]:
    """Body of a point's process. Memory: above what the process holds before its first update, and in all above its start."""
    start = resident()
    model = ModelConfig(micro_batch_size=point.micro_batch)
    place = groups.initialize(model, seed=1)
    shape = small_qwen2(point.hidden, point.layers)
    policy = random_policy(shape, model, "32", place)
    schedule = schedule_of(policy)
    drawn = sequences(point.batch, (point.length, point.length), shape.vocab_size, 3)
    term, between = demonstration_term(drawn), resident()
    seconds = [step_seconds(policy, schedule, term) for _ in range(repeats + 1)][1:]
    architecture = from_hub(shape.to_dict())
    assert architecture is not None
    peak = platform.peak_memory_bytes()
    return {
        "seconds": min(seconds),
        "median seconds": statistics.median(seconds),
        "parameters": architecture.parameters,
        "tokens": sum(len(s.tokens) for s in drawn),
        "flops": model_flops(shape, drawn),
        "memory of a step": peak - between,
        "memory": peak - start,
    }


def resident() -> int:
    """Bytes of this process in memory now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def launch(point: Point, repeats: int) -> dict[str, float]:
    """A point, measured in a process of its own."""
    with tempfile.TemporaryDirectory() as folder, socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        out, port = Path(folder) / "point.json", probe.getsockname()[1]
        probe.close()
        command = [sys.executable, "-W", "ignore", __file__, "--point", json.dumps(asdict(point)), "--out", str(out)]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "MASTER_PORT": str(port), "MALLOC_ARENA_MAX": "1"}
        subprocess.run([*command, "--repeats", str(repeats)], check=True, env=environment, stderr=subprocess.DEVNULL)
        return json.loads(out.read_text())


def exponent(x: list[float], y: list[float]) -> float:
    """Slope of the least-squares line through (log x, log y)."""
    log_x, log_y = [math.log(v) for v in x], [math.log(max(v, 1e-12)) for v in y]
    return statistics.linear_regression(log_x, log_y).slope


def draw(found: dict[str, dict]) -> None:
    """Seconds and memory over each axis, both logarithmic."""
    matplotlib.use("Agg")
    figure, axes = plt.subplots(1, len(found), figsize=(4 * len(found), 3.2), layout="constrained")
    for axis, (name, sweep) in zip(axes, found.items(), strict=True):
        x = sweep["x"]
        exponents = sweep["exponents"]
        axis.loglog(x, sweep["seconds"], "o-", label=f"seconds, exponent {exponents['seconds']:.2f}")
        axis.loglog(x, [m / 2**30 for m in sweep["memory"]], "s--", label=f"peak GiB, exponent {exponents['memory']:.2f}")
        axis.set_xlabel(name)
        axis.grid(alpha=0.3, which="both")
        axis.legend(fontsize=8)
    figure.suptitle("One SFT update, one thread, fp32", fontsize=10)
    figure.savefig(FIGURE, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3, help="updates a point, of which the fastest counts")
    parser.add_argument("--point", help=argparse.SUPPRESS)
    parser.add_argument("--out", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.point:
        Path(options.out).write_text(json.dumps(measure(Point(**json.loads(options.point)), options.repeats)))
        return
    found = {}
    for name, (field, points) in SWEEPS.items():
        print(f"\n{name:<26}{'seconds':>10}{'GFLOP/s':>10}{'step MiB':>10}{'all MiB':>10}", flush=True)
        rows = []
        for point in points:
            row = launch(point, options.repeats)
            rows.append(row | asdict(point))
            numbers = (
                row["seconds"],
                row["flops"] / row["seconds"] / 1e9,
                row["memory of a step"] / 2**20,
                row["memory"] / 2**20,
            )
            print(f"{rows[-1][field]:<26}" + "".join(f"{n:10.2f}" for n in numbers), flush=True)
        columns = {key: [row[key] for row in rows] for key in ("seconds", "memory of a step", "memory", "flops")}
        x = [row[field] for row in rows]
        exponents = {key: exponent(x, values) for key, values in columns.items()}
        # Where a constant part has been left behind: between the two largest points.
        last = {key: exponent(x[-2:], values[-2:]) for key, values in columns.items()}
        for title, slopes in (("exponent", exponents), ("of the two largest", last)):
            memory = "".join(f"{slopes[key]:10.2f}" for key in ("memory of a step", "memory"))
            print(f"{title:<26}{slopes['seconds']:10.2f}{'':10}{memory}")
        found[name] = {"x": x, **columns, "exponents": exponents, "exponents of the two largest": last, "points": rows}
    draw(found)
    print(write_result("cost_growth", {"sweeps": found}))


if __name__ == "__main__":
    main()
