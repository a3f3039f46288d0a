"""Two evaluations on the same problems, side by side.

    python -m nemo_amft.compare A B [--only NAME,NAME] [--out FILE.json]

A and B are evaluation.json of nemo_amft.evaluate, or the folders they are in. The table has, for each benchmark and for the
mean of them, B - A with its 95% interval and two p values. Files on different problems, or of different graders, are refused.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nemo_amft.config.typed import local_path
from nemo_amft.evaluation.comparison import compare_averages, compare_scores
from nemo_amft.evaluation.results import JSON, table
from nemo_amft.observe.files import write_atomically
from nemo_amft.types import UserError

SETTINGS = ("seed", "temperature", "top_p", "max_new_tokens", "thinking", "system_prompt")
"""What is pointed out where it differs: then the model is not all that does."""


def read(path: Path) -> dict[str, Any]:
    """The result file that `path` is or holds. Raises UserError."""
    file = path / JSON if path.is_dir() else path
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: {error}; expected {JSON} of nemo_amft.evaluate") from None
    if not isinstance(found, dict) or not isinstance(found.get("benchmarks"), dict) or not found["benchmarks"]:
        raise UserError(f"{file}: found no benchmarks, expected {JSON} of nemo_amft.evaluate benchmarks.NAME=...")
    for name, scores in found["benchmarks"].items():
        for field in ("title", "grader", "per_problem"):
            if not isinstance(scores, dict) or field not in scores:
                raise UserError(f"{file}: benchmarks.{name}: found no {field}, expected {JSON} of nemo_amft.evaluate, whole")
    return found | {"file": str(file)}


def compare(a: Mapping[str, Any], b: Mapping[str, Any], only: Sequence[str] = ()) -> dict[str, Any]:
    """Comparison of two result files. Raises UserError unless both hold the same problems, scored by the same grader."""
    names = list(only) or sorted(a["benchmarks"].keys() | b["benchmarks"].keys())
    pairs = {name: _paired(name, a, b) for name in names}
    result: dict[str, Any] = {"a": a["file"], "b": b["file"], "benchmarks": {}, "notes": notes(a, b)}
    for name, (ours, theirs) in pairs.items():
        result["benchmarks"][name] = {"title": a["benchmarks"][name]["title"], **compare_scores(ours, theirs)}
    if len(pairs) > 1:
        result["mean"] = {"title": "mean", **compare_averages(list(pairs.values()))}
    return result


def notes(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    """Settings in which the two differ, besides the model."""
    return [f"{name}: {a.get(name)!r} in A, {b.get(name)!r} in B" for name in SETTINGS if a.get(name) != b.get(name)]


def markdown(result: Mapping[str, Any]) -> str:
    """The table."""
    rows = [["benchmark", "problems", "A", "B", "B - A", "95% interval", "p, permutation", "p, sign", "B / A better / same"]]
    for found in [*result["benchmarks"].values(), *([result["mean"]] if "mean" in result else [])]:
        counted = f"{found['wins']} / {found['losses']} / {found['ties']}" if "wins" in found else ""
        rows.append([
            found["title"], str(found["problems"]), f"{100 * found['mean_a']:.1f}%", f"{100 * found['mean_b']:.1f}%",
            f"{100 * found['difference']:+.1f}", f"{100 * found['interval'][0]:+.1f} to {100 * found['interval'][1]:+.1f}",
            f"{found['p_permutation']:.4f}", f"{found['p_sign']:.4f}" if "p_sign" in found else "", counted,
        ])  # fmt: skip
    head = f"A: {result['a']}\nB: {result['b']}\n\n"
    return head + table(rows) + "".join(f"note: {note}\n" for note in result["notes"])


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns the exit status: 2 for files that cannot be compared."""
    parser = argparse.ArgumentParser(prog="python -m nemo_amft.compare", description="Compare two evaluations, paired.")
    parser.add_argument("a", type=local_path, help="evaluation.json, or its folder")
    parser.add_argument("b", type=local_path, help="the other one")
    parser.add_argument("--only", default="", help="benchmarks to compare, with commas between")
    parser.add_argument("--out", type=local_path, help="also write the numbers to this JSON file")
    args = parser.parse_args(argv)
    try:
        result = compare(read(args.a), read(args.b), [name for name in args.only.split(",") if name])
    except UserError as error:
        print(f"nemo_amft: error: {error}", file=sys.stderr)
        return 2
    print(markdown(result), end="")
    if args.out is not None:
        write_atomically(args.out, json.dumps(result, indent=1) + "\n")
    return 0


def _paired(name: str, a: Mapping[str, Any], b: Mapping[str, Any]) -> tuple[list[float], list[float]]:
    """The scores of the same problems, in A's order."""
    for mine, other in ((a, b), (b, a)):
        if name not in mine["benchmarks"]:
            has = f"which {other['file']} has" if name in other["benchmarks"] else "which --only names"
            raise UserError(f"{mine['file']}: found no benchmark {name}, {has}; compare what both have by --only")
    ours, theirs = a["benchmarks"][name], b["benchmarks"][name]
    if ours["grader"] != theirs["grader"]:
        raise UserError(f"{b['file']}: {name}: found scores by {theirs['grader']}, expected {ours['grader']} as in {a['file']}")
    scores_a, scores_b = ({p["key"]: p["correct"] / p["samples"] for p in one["per_problem"]} for one in (ours, theirs))
    if scores_a.keys() != scores_b.keys():
        shared = len(scores_a.keys() & scores_b.keys())
        raise UserError(
            f"{b['file']}: {name}: found {len(scores_b)} problems, {shared} of them among the {len(scores_a)} of {a['file']}, "
            "expected the same problems"
        )
    return list(scores_a.values()), [scores_b[key] for key in scores_a]


if __name__ == "__main__":
    sys.exit(main())
