"""From answers to evaluation.json and evaluation.md."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nemo_amft.evaluation import metrics
from nemo_amft.evaluation.problems import ProblemSet
from nemo_amft.observe.files import write_atomically
from nemo_amft.tasks.math.boxed import last_boxed

JSON, MARKDOWN = "evaluation.json", "evaluation.md"

Rows = Mapping[tuple[int, int], Mapping[str, Any]]


def benchmark_result(problems: ProblemSet, rows: Rows, leaked: Sequence[str] | None) -> dict[str, Any]:
    """Scores of one finished benchmark.

    `rows`: answers by (problem, sample). `leaked`: ids of problems that the training data has; None where nobody looked.
    """
    n = problems.samples
    drawn = [[rows[(index, sample)] for sample in range(n)] for index in range(len(problems.examples))]
    counts = {g: [sum(row["verdicts"][g]["correct"] for row in group) for group in drawn] for g in problems.graders}
    first = counts[problems.graders[0]]
    scores = [c / n for c in first]
    verdicts = [row["verdicts"][g] for group in drawn for row in group for g in problems.graders]
    every = [row for group in drawn for row in group]
    result: dict[str, Any] = {
        "title": problems.title,
        "group": problems.group,
        "problems": len(drawn),
        "samples": n,
        "grader": problems.graders[0],
        "mean": sum(scores) / len(scores),
        "interval": metrics.mean_interval(scores),
        "pass_at_k": {str(k): _pass_at(first, n, k) for k in metrics.ks(n)},
        "other_graders": {g: sum(counts[g]) / (n * len(drawn)) for g in problems.graders[1:]},
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
        for example, key, c in zip(problems.examples, problems.keys, first, strict=True)
    ]
    return result


def averages(benchmarks: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Means of benchmark means, of each group and of all: a large benchmark weighs no more than a small one."""
    groups: dict[str, list[str]] = {}
    for name, found in benchmarks.items():
        for group in filter(None, (found["group"], "all")):
            groups.setdefault(group, []).append(name)
    order = [*(g for g in groups if g != "all"), *(["all"] if "all" in groups else [])]
    result = {}
    for group in order:
        names = groups[group]
        scores = [[p["correct"] / p["samples"] for p in benchmarks[name]["per_problem"]] for name in names]
        mean = sum(benchmarks[name]["mean"] for name in names) / len(names)
        result[group] = {"benchmarks": names, "mean": mean, "interval": metrics.average_interval(scores)}
    return result


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
    for group, found in result["averages"].items():
        if len(found["benchmarks"]) > 1:
            rows.append([f"mean, {group}", "", _percent(found["mean"]), _range(found["interval"]), "", "", "", "", ""])
    return table(rows)


def table(rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, readable as it is; the first row is its head."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines) + "\n"


def _pass_at(counts: Sequence[int], n: int, k: int) -> dict[str, Any]:
    scores = [metrics.pass_at_k(n, c, k) for c in counts]
    return {"mean": sum(scores) / len(scores), "interval": metrics.mean_interval(scores)}


def _category(scores: Sequence[float]) -> dict[str, Any]:
    return {"problems": len(scores), "mean": sum(scores) / len(scores), "interval": metrics.mean_interval(scores)}


def _percent(share: float) -> str:
    return f"{100 * share:.1f}%"


def _range(interval: Sequence[float]) -> str:
    return f"{100 * interval[0]:.1f} to {100 * interval[1]:.1f}"
