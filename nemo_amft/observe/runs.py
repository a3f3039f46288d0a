"""What finished and unfinished runs say of themselves: read from run directories, or from the CSV files of a report."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemo_amft.observe import metrics, summary
from nemo_amft.types import UserError

RUNS_CSV, CURVES_CSV = "runs.csv", "curves.csv"
FACTS = ("name", "seed", "finished", "wall_seconds", "tokens_per_second")
CURVES = (
    "reward/mean", "mu", "mu/meta_term", "mu/entropy_term", "entropy", "entropy/target", "data/samples", "data/demonstrations",
    "data/demonstration_share",
)  # fmt: skip
"""Metrics kept in curves.csv, beside every accuracy and its standard error."""


@dataclass(frozen=True)
class Run:
    """One run. What it lacks is None: a run that has not finished has no summary."""

    folder: str
    name: str
    seed: int | None
    finished: bool
    wall_seconds: float | None
    tokens_per_second: float | None
    records: list[metrics.Record]

    def values(self, phase: str, name: str) -> list[float]:
        """The metric's values in order, gaps left out."""
        return [r[name] for r in self.records if r["phase"] == phase and r.get(name) is not None]

    @property
    def sets(self) -> list[str]:
        """What is evaluated at the end: "test", then the task's sets out of distribution."""
        found = dict.fromkeys(
            name.removesuffix("/accuracy")
            for record in self.records
            if record["phase"] == "validation" and "test/accuracy" in record
            for name in record
            if name.endswith("/accuracy")
        )
        return ["test", *(name for name in found if name not in ("test", "validation"))] if found else []

    def final(self, name: str) -> float | None:
        """Accuracy at the end on one of `sets`, or on "validation"; None before the end."""
        found = self.values("validation", f"{name}/accuracy")
        return found[-1] if found and self.finished else None

    def after_warm_up(self, name: str) -> float | None:
        """Accuracy before the first step on one of `sets`, or on "validation"."""
        found = [r.get(f"{name}/accuracy") for r in self.records if r["phase"] == "validation" and r["step"] == 0]
        return found[0] if found else None

    def used_until(self, accuracy: float, metric: str) -> float | None:
        """Sum of a step's `metric` (data/samples, data/demonstrations), warm-up included, until validation first reached
        `accuracy`; None if it never did."""
        reached = [
            r["step"] for r in self.records if r["phase"] == "validation" and (r.get("validation/accuracy") or 0.0) >= accuracy
        ]
        if not reached:
            return None
        counted = (r for r in self.records if r["phase"] == "warmup" or (r["phase"] == "train" and r["step"] < reached[0]))
        return sum(r.get(metric) or 0.0 for r in counted)


def read_runs(folder: Path) -> list[Run]:
    """The run of a run directory, or the runs of a report's folder. Raises UserError for a folder that is neither."""
    if (folder / RUNS_CSV).is_file():
        return _read_csv(folder)
    if not (folder / metrics.FILE_NAME).is_file():
        raise UserError(f"{folder}: found neither {metrics.FILE_NAME} nor {RUNS_CSV}, expected a run directory or a report")
    path = folder / summary.FILE_NAME
    facts = _read_facts(path) if path.is_file() else {}
    name = facts.get("name") or folder.resolve().name
    numbers = (facts.get("wall_seconds"), facts.get("tokens_per_second"))
    return [Run(str(folder), name, facts.get("seed"), path.is_file(), *numbers, metrics.read_metrics(folder))]


def write_csv(runs: Sequence[Run], folder: Path) -> None:
    """runs.csv, a row a run, and curves.csv, a row a record: all that tables and pictures are made of."""
    columns = list(dict.fromkeys(name for run in runs for record in run.records for name in record if _is_curve(name)))
    with (folder / RUNS_CSV).open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("run", *FACTS))
        writer.writerows((i, *(_text(getattr(run, fact)) for fact in FACTS)) for i, run in enumerate(runs))
    with (folder / CURVES_CSV).open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("run", "phase", "step", *columns))
        for i, run in enumerate(runs):
            for r in run.records:
                writer.writerow((i, r["phase"], r["step"], *(_text(r.get(column)) for column in columns)))


def _is_curve(name: str) -> bool:
    return name in CURVES or name.endswith(("/accuracy", "/standard_error"))


def _text(value: Any) -> str:
    """Six digits: far below what seeds differ by, and readable."""
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _read_csv(folder: Path) -> list[Run]:
    records: dict[str, list[metrics.Record]] = {}
    for row in _rows(folder / CURVES_CSV, ("run", "phase", "step")):
        number, phase, step = row.pop("run"), row.pop("phase"), int(row.pop("step"))
        known = {name: float(value) for name, value in row.items() if value}
        records.setdefault(number, []).append({"phase": phase, "step": step, **known})
    return [
        Run(
            f"{folder}, run {row['run']}",
            row["name"],
            int(row["seed"]) if row["seed"] else None,
            row["finished"] == "True",
            float(row["wall_seconds"]) if row["wall_seconds"] else None,
            float(row["tokens_per_second"]) if row["tokens_per_second"] else None,
            records.get(row["run"], []),
        )
        for row in _rows(folder / RUNS_CSV, ("run", *FACTS))
    ]


def _rows(path: Path, wanted: Iterable[str]) -> list[dict[str, str]]:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            missing = [name for name in wanted if name not in (reader.fieldnames or ())]
            if missing:
                raise UserError(f"{path}: found no column {', '.join(missing)}, expected a report's file")
            return list(reader)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; expected a report's file") from None


def _read_facts(path: Path) -> dict[str, Any]:
    """What a summary says. Raises UserError for what it cannot be."""
    facts = _read_object(path)
    kinds = {"name": str, "seed": int, "wall_seconds": (int, float), "tokens_per_second": (int, float)}
    for key, kind in kinds.items():
        if facts.get(key) is not None and not isinstance(facts[key], kind):
            raise UserError(f"{path}: {key}: found {facts[key]!r}, expected what a finished run writes")
    return facts


def _read_object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: {error}; expected the JSON object that a finished run writes") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: found {type(value).__name__}, expected a JSON object")
    return value
