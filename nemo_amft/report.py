"""Runs side by side.

    python -m nemo_amft.report RUN... [--out FOLDER]

RUN is a run directory. Runs of one name (seeds) share a row, as their mean with a 95% confidence interval. The table is
Markdown, on stdout; with --out it is also written to FOLDER/report.md, with a picture of the runs in FOLDER/comparison.png.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemo_amft.observe import metrics, summary
from nemo_amft.types import UserError


@dataclass(frozen=True)
class Run:
    """What a run directory says. Numbers that it lacks are None: a run that has not finished has no summary.json."""

    folder: Path
    name: str
    seed: int | None
    finished: bool
    numbers: dict[str, float | None]
    records: list[metrics.Record]


COLUMNS: dict[str, tuple[str, Callable[[float], str]]] = {
    "final_accuracy": ("final accuracy", lambda x: f"{x:.1%}"),
    "best_validation": ("best validation", lambda x: f"{x:.1%}"),
    "final_mu": ("final mu", lambda x: f"{x:.4f}"),
    "steps": ("steps", lambda x: f"{x:.0f}"),
    "wall_seconds": ("wall time [min]", lambda x: f"{x / 60:.1f}"),
    "tokens_per_second": ("tokens/s", lambda x: f"{x:,.0f}"),
}


def read_run(folder: Path) -> Run:
    """Read a run directory. Raises UserError for a folder that is none."""
    if not (folder / metrics.FILE_NAME).is_file():
        raise UserError(f"{folder}: found no {metrics.FILE_NAME}, expected a run directory")
    records = metrics.read_metrics(folder)
    path = folder / summary.FILE_NAME
    facts = _read_object(path) if path.is_file() else {}
    mu = _values(records, "train", "mu")
    validation = _values(records, "validation", "validation/accuracy")
    test = _values(records, "validation", "test/accuracy")  # after warm-up, and at the end
    numbers = {
        "final_accuracy": test[-1] if test and path.is_file() else None,
        "best_validation": max(validation, default=None),
        "final_mu": mu[-1] if mu else None,
        "steps": sum(record["phase"] == "train" for record in records),
        "wall_seconds": facts.get("wall_seconds"),
        "tokens_per_second": facts.get("tokens_per_second"),
    }
    return Run(folder, facts.get("name") or folder.resolve().name, facts.get("seed"), path.is_file(), numbers, records)


def table(runs: Sequence[Run]) -> str:
    """The Markdown table: a row a name, in the order given."""
    rows = [["run", "seeds", *(title for title, _ in COLUMNS.values())]]
    for name, group in _by_name(runs).items():
        unfinished = sum(not run.finished for run in group)
        label = f"{name} ({unfinished} unfinished)" if unfinished else name
        cells = [_cell([run.numbers[key] for run in group], form) for key, (_, form) in COLUMNS.items()]
        rows.append([label, str(len(group)), *cells])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines) + "\n"


def mean_and_interval(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and half-width of its 95% confidence interval by Student's t; None for the latter with fewer than two values."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return mean, None
    from scipy.stats import t  # comes with scikit-learn, which NeMo needs; slow to import, and only needed for several seeds

    half = float(t.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / math.sqrt(len(values))
    return mean, half


def _cell(values: Sequence[float | None], form: Callable[[float], str]) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    mean, half = mean_and_interval(known)
    return form(mean) if half is None else f"{form(mean)} ± {form(half)}"


def _values(records: Sequence[metrics.Record], phase: str, name: str) -> list[float]:
    return [record[name] for record in records if record["phase"] == phase and record.get(name) is not None]


def _by_name(runs: Sequence[Run]) -> dict[str, list[Run]]:
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(run.name, []).append(run)
    return groups


def _read_object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: {error}; expected the JSON object that a finished run writes") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: found {type(value).__name__}, expected a JSON object")
    return value


def _warn_of_repeated_seeds(runs: Sequence[Run]) -> None:
    """Two runs of one seed are not two samples, so an interval over them would be too narrow."""
    for (name, seed), times in Counter((run.name, run.seed) for run in runs if run.seed is not None).items():
        if times > 1:
            print(f"nemo_amft: warning: {name}: seed {seed} is there {times} times; the interval is too small", file=sys.stderr)


def _draw(runs: Sequence[Run], path: Path) -> None:
    """One line a run; seeds of one name are told apart by their seed, or else by their folder."""
    from nemo_amft.observe.figures import comparison

    lines: dict[str, list[metrics.Record]] = {}
    for name, group in _by_name(runs).items():
        for run in group:
            label = name if len(group) == 1 else f"{name}, seed {run.seed}"
            lines[label if label not in lines else f"{name}, {run.folder}"] = run.records
    comparison(lines, path, "Runs side by side")


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m nemo_amft.report", description="Show runs side by side.")
    parser.add_argument("run", nargs="+", type=Path, help="run directory")
    parser.add_argument("--out", type=Path, help="folder to write report.md and comparison.png to")
    args = parser.parse_args(argv)
    try:
        runs = [read_run(folder) for folder in args.run]
    except UserError as error:
        print(f"nemo_amft: error: {error}", file=sys.stderr)
        return 2
    _warn_of_repeated_seeds(runs)
    text = table(runs)
    print(text, end="")
    if args.out is not None:
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / "report.md").write_text(text + "\n![comparison](comparison.png)\n", encoding="utf-8")
        _draw(runs, args.out / "comparison.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
