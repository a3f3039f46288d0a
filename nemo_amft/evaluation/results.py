"""From answers to evaluation.json and evaluation.md."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nemo_amft.data.boxed import last_boxed
from nemo_amft.evaluation import metrics
from nemo_amft.evaluation.problems import ProblemSet
from nemo_amft.evaluation.registry import AVERAGES
from nemo_amft.observe.files import write_atomically

JSON, MARKDOWN = "evaluation.json", "evaluation.md"

Rows = Mapping[tuple[int, int], Mapping[str, Any]]


def benchmark_result(problems: ProblemSet, rows: Rows, leaked: Sequence[str] | None) -> dict[str, Any]:
    """Scores of one finished benchmark.

    `rows`: answers by (problem, sample). `leaked`: ids of problems that the training data has; None where nobody looked.
    """
    ns = problems.samples
    drawn = [[rows[(index, sample)] for sample in range(n)] for index, n in enumerate(ns)]
    counts = {g: [sum(row["verdicts"][g]["correct"] for row in group) for group in drawn] for g in problems.graders}
    first = counts[problems.graders[0]]
    scores = _shares(first, ns)
    verdicts = [row["verdicts"][g] for group in drawn for row in group for g in problems.graders]
    every = [row for group in drawn for row in group]
    result: dict[str, Any] = {
        "title": problems.title,
        "problems": len(drawn),
        "samples": min(ns),
        "grader": problems.graders[0],
        "mean": sum(scores) / len(scores),
        "interval": metrics.mean_interval(scores),
        "pass_at_k": {str(k): _pass_at(first, ns, k) for k in metrics.ks(min(ns))},
        "other_graders": {g: sum(_shares(counts[g], ns)) / len(drawn) for g in problems.graders[1:]},
        "unboxed": sum(last_boxed(row["response"]) is None for row in every) / len(every),
        "truncated": sum(not row["finished"] for row in every) / len(every),
        "tokens": sum(row["tokens"] for row in every) / len(every),
        "grading_timeouts": sum(verdict["status"] == "timeout" for verdict in verdicts),
        "grading_errors": sum(verdict["status"] == "error" for verdict in verdicts),
        "in_training_data": None if leaked is None else list(leaked),
    }
    categories = [str(example.metadata.get("category") or "") for example in problems.examples]
    if any(categories):
        result["categories"] = {
            name: _category([s for s, c in zip(scores, categories, strict=True) if c == name])
            for name in sorted(set(categories))
        }
    result["per_problem"] = [
        {"id": example.id, "key": key, "correct": c, "samples": n}
        for example, key, c, n in zip(problems.examples, problems.keys, first, ns, strict=True)
    ]
    return result


def averages(benchmarks: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Means of benchmark means, by the names of registry.AVERAGES and of all; a large benchmark weighs as much as a small one.

    Where some sets of an average are missing, its name says how many there are; none stands twice for the same sets.
    """
    chosen: dict[str, list[str]] = {}
    for name, sets in AVERAGES.items():
        found = [benchmark for benchmark in sets if benchmark in benchmarks]
        if found and found not in chosen.values():
            chosen[name if len(found) == len(sets) else f"{name} ({len(found)} of {len(sets)} sets)"] = found
    if benchmarks:
        chosen["all"] = list(benchmarks)
    return {name: _average([benchmarks[benchmark] for benchmark in sets], sets) for name, sets in chosen.items()}


def _average(results: Sequence[Mapping[str, Any]], names: list[str]) -> dict[str, Any]:
    scores = [[p["correct"] / p["samples"] for p in result["per_problem"]] for result in results]
    mean = sum(result["mean"] for result in results) / len(results)
    return {"benchmarks": names, "mean": mean, "interval": metrics.average_interval(scores)}


def write(run_dir: Path, about: Mapping[str, Any], benchmarks: Mapping[str, Mapping[str, Any]]) -> str:
    """Write both files, and return the table."""
    result = {**about, "confidence": metrics.LEVEL, "averages": averages(benchmarks), "benchmarks": dict(benchmarks)}
    write_atomically(run_dir / JSON, json.dumps(result, indent=1) + "\n")
    text = markdown(result)
    write_atomically(run_dir / MARKDOWN, text)
    return text


def markdown(result: Mapping[str, Any]) -> str:
    """The table of evaluation.md."""
    rows = [["benchmark", "problems", "score", "95% interval", "pass@k", "other grader", "no box", "cut", "grading failed"]]
    for found in result["benchmarks"].values():
        n = found["samples"]
        last = found["pass_at_k"][str(n)]
        others = ", ".join(f"{name} {_percent(mean)}" for name, mean in found["other_graders"].items())
        failed = found["grading_timeouts"] + found["grading_errors"]
        rows.append([
            found["title"], str(found["problems"]), f"{'pass' if n == 1 else 'avg'}@{n} {_percent(found['mean'])}",
            _range(found["interval"]), f"pass@{n} {_percent(last['mean'])} ({_range(last['interval'])})" if n > 1 else "-",
            others or "-", _percent(found["unboxed"]), _percent(found["truncated"]), str(failed),
        ])  # fmt: skip
    for name, found in result["averages"].items():
        if len(found["benchmarks"]) > 1:
            rows.append([f"mean, {name}", "", _percent(found["mean"]), _range(found["interval"]), "", "", "", "", ""])
    return table(rows)


def table(rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, readable as it is; the first row is its head."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines) + "\n"


def _shares(counts: Sequence[int], ns: Sequence[int]) -> list[float]:
    return [c / n for c, n in zip(counts, ns, strict=True)]


def _pass_at(counts: Sequence[int], ns: Sequence[int], k: int) -> dict[str, Any]:
    scores = [metrics.pass_at_k(n, c, k) for c, n in zip(counts, ns, strict=True)]
    return {"mean": sum(scores) / len(scores), "interval": metrics.mean_interval(scores)}


def _category(scores: Sequence[float]) -> dict[str, Any]:
    return {"problems": len(scores), "mean": sum(scores) / len(scores), "interval": metrics.mean_interval(scores)}


def _percent(share: float) -> str:
    return f"{100 * share:.1f}%"


def _range(interval: Sequence[float]) -> str:
    return f"{100 * interval[0]:.1f} to {100 * interval[1]:.1f}"
