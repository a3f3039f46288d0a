"""The tables of results/README.md from the JSON beside it: `python benchmarks/summary.py`. No number there is typed by hand."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

RESULTS = Path(__file__).parent / "results"
INTRODUCTION = """# Results

Written by `python benchmarks/summary.py` from the JSON files here, which hold every turn, the machine, the versions and the
revision. Ratios are medians over rounds in which contenders took turns.
"""


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def programs(found: dict[str, Any]) -> str:
    """Programs that took turns (interleave.py)."""
    ours, unit = found["fastest"]["nemo_amft"]["program"], found["unit"].removesuffix("/s")
    rates = {name: [turn["counts"][unit] / turn["wall"] for turn in p["turns"]] for name, p in found["programs"].items()}
    rows = [
        (name, f"{median(mine):.1f}", f"{median(a / b for a, b in zip(rates[ours], mine, strict=True)):.2f}")
        for name, mine in rates.items()
    ]
    return table(("program", found["unit"], f"{ours}, over it"), rows)


def rollout(found: dict[str, Any]) -> str:
    rows = [(name, f"{r['tokens_per_second']:.1f}", f"{r['ours_over_this']:.3f}") for name, r in found["median"].items()]
    return table(("contender", "new tokens/s", "ours over it"), rows)


def shares(found: dict[str, Any]) -> str:
    rows = [
        (name, f"{r['GFLOP/s']:.0f}", f"{r['peak GFLOP/s']:.0f}", f"{r['share']:.1%}", f"{r['tokens/s']:.0f}")
        for name, r in found["medians"].items()
    ]
    return table(("layout, precision", "GFLOP/s", "peak", "share", "tokens/s"), rows)


def ratios(found: dict[str, Any]) -> str:
    return table(("", "ratio"), [(name, f"{value:.3f}") for name, value in found["median_ratios"].items()])


def sync(found: dict[str, Any]) -> str:
    layouts = found["layouts"]
    names = list(dict.fromkeys(name for row in layouts.values() for name in row["over_copy"]))
    rows = [
        (layout, f"{row['MB']:.0f}", *(f"{row['over_copy'][n]:.2f}" if n in row["over_copy"] else "" for n in names))
        for layout, row in layouts.items()
    ]
    return table(("layout", "MB", *names), rows)


def growth(found: dict[str, Any]) -> str:
    rows = [
        (
            name, ", ".join(map(str, sweep["x"])), ", ".join(f"{s:.2f}" for s in sweep["seconds"]),
            f"{sweep['exponents']['seconds']:.2f}", f"{sweep['exponents of the two largest']['seconds']:.2f}",
            f"{sweep['exponents']['memory of a step']:.2f}",
        )
        for name, sweep in found["sweeps"].items()
    ]  # fmt: skip
    return table(("over", "at", "seconds", "exponent", "of the two largest", "of the step's memory"), rows)


def plan(found: dict[str, Any]) -> str:
    rows = [
        (row["layout"], str(row["rank"]), row["quantity"], f"{row['planned'] / 2**20:.1f}", f"{row['measured'] / 2**20:.1f}",
         f"{row['planned'] / row['measured']:.3f}")
        for row in found["rows"]
    ]  # fmt: skip
    return table(("layout", "rank", "quantity", "planned MiB", "measured MiB", "planned / measured"), rows)


SECTIONS: dict[str, tuple[str, Callable[[dict[str, Any]], str]]] = {
    "grpo_step_fixed": ("A GRPO step against TRL, responses of one length", programs),
    "grpo_step_mixed": ("A GRPO step against TRL, responses that end by themselves", programs),
    "sft_step_small": ("An SFT step, small model", programs),
    "sft_step_smollm2": ("An SFT step, SmolLM2-135M's shape", programs),
    "rollout": ("Rollouts", rollout),
    "weight_sync": ("Weight sync, in copies of the same bytes", sync),
    "training_flops": ("Training FLOP/s against the measured matrix-product peak", shares),
    "meta_update": ("The meta-update", ratios),
    "cost_growth": ("How a step grows", growth),
    "plan_memory": ("The plan against measured memory", plan),
}


def sections() -> Iterator[str]:
    for name, (title, write) in SECTIONS.items():
        path = RESULTS / f"{name}.json"
        if not path.exists():
            continue
        found = json.loads(path.read_text())
        machine = found["machine"]
        about = f"`{found['command']}`, {machine['cores']} cores of {machine['cpu']}, revision {str(found['revision'])[:10]}"
        yield f"## {title}\n\n{about}.\n\n{write(found)}"


def main() -> None:
    path = RESULTS / "README.md"
    path.write_text("\n".join([INTRODUCTION, *sections()]))
    print(path)


if __name__ == "__main__":
    main()
