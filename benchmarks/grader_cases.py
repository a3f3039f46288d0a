"""Do the graders agree with people? Grades labelled responses by each grader, and lists where a verdict differs.

    python benchmarks/grader_cases.py FILE.jsonl ... [--grader math_verify] [--show 20]
    python benchmarks/grader_cases.py --math-verify-checkout DIR

A row is {"gold": text or list of texts, "response": text, "expected": 0 or 1}. Where all golds are option letters every grader
is asked; otherwise the two of free answers. The second form takes the cases from the tests of a checkout of Math-Verify, whose
literal (gold, pred, expected) are read and not run, for the grader math_verify, and asks Math-Verify alone with its defaults
too. Both may be given.

Ends with status 1 if a verdict differs from what is expected, but for cases of Math-Verify's where its own does too, and with
status 2 for rows that cannot be used.
"""

from __future__ import annotations

import argparse
import ast
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from nemo_amft.data.golds import for_grader, join_golds
from nemo_amft.tasks.math.graders import BenchmarkVerifier
from nemo_amft.tasks.math.labels import lone_letter
from nemo_amft.tasks.rewards import RewardPool
from nemo_amft.types import UserError, Verdict

FREE, ALL = ("math_verify", "oat"), ("math_verify", "oat", "choice")
OUTCOMES = ("expected", "result")
"""What Math-Verify's tests call the verdict that should come out."""
MAX_SHOWN = 160


@dataclass(frozen=True)
class Case:
    """One labelled response."""

    origin: str
    golds: tuple[str, ...]
    response: str
    expected: bool

    def graders(self) -> tuple[str, ...]:
        return ALL if all(lone_letter(gold) for gold in self.golds) else FREE


def read_rows(file: Path) -> list[Case]:
    """The cases of a .jsonl file. Raises UserError."""
    try:
        lines = file.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: {error}; expected a .jsonl file") from None
    return [_case(f"{file}, line {number}", line) for number, line in enumerate(lines, start=1) if line.strip()]


def _case(origin: str, line: str) -> Case:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise UserError(f"{origin}: found malformed JSON ({error}), expected an object") from None
    if not isinstance(row, dict):
        raise UserError(f"{origin}: found {type(row).__name__}, expected an object")
    golds = row.get("gold")
    golds = golds if isinstance(golds, list) else [golds]
    if not golds or not all(isinstance(gold, str) and gold.strip() for gold in golds):
        raise UserError(f"{origin}: gold: found {row.get('gold')!r}, expected a text or a list of texts")
    if not isinstance(row.get("response"), str):
        raise UserError(f"{origin}: response: found {row.get('response')!r}, expected a text")
    if row.get("expected") not in (0, 1):
        raise UserError(f"{origin}: expected: found {row.get('expected')!r}, expected 0 or 1")
    return Case(origin, tuple(golds), row["response"], bool(row["expected"]))


def literal_cases(checkout: Path) -> list[Case]:
    """The literal (gold, pred, expected) of the parametrised tests in `checkout`/tests. Raises UserError if there are none."""
    files = sorted(checkout.glob("tests/test_*.py"))
    cases = [case for file in files for case in _parametrised(file)]
    if not cases:
        raise UserError(f"{checkout}: found no cases in {len(files)} files tests/test_*.py, expected a checkout of Math-Verify")
    return cases


def _parametrised(file: Path) -> Iterator[Case]:
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if not (isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.mark.parametrize" and len(node.args) == 2):
            continue
        names, rows = node.args
        if not isinstance(names, ast.Constant) or not isinstance(rows, ast.List | ast.Tuple):
            continue
        names = [name.strip() for name in str(names.value).split(",")]
        for row in rows.elts:
            try:
                found = dict(zip(names, ast.literal_eval(row), strict=True))
            except (ValueError, TypeError):
                continue  # computed, or of other arguments
            outcome = next((found[name] for name in OUTCOMES if name in found), None)
            if {"gold", "pred"} <= found.keys() and outcome is not None:
                yield Case(f"{file.name}, line {row.lineno}", (found["gold"],), found["pred"], bool(outcome))


def grade(cases: Sequence[Case], graders: Sequence[str], args: argparse.Namespace) -> dict[str, list[tuple[Case, Verdict]]]:
    """For each grader, the cases that are for it and its verdicts."""
    asked = [(grader, case) for grader in graders for case in cases if grader in case.graders()]
    items = [(for_grader(grader, join_golds(case.golds)), case.response, True) for grader, case in asked]
    with RewardPool(BenchmarkVerifier(thinking=False), args.workers, args.timeout, 2048) as pool:
        verdicts = pool.score(items)
    found: dict[str, list[tuple[Case, Verdict]]] = {}
    for (grader, case), verdict in zip(asked, verdicts, strict=True):
        found.setdefault(grader, []).append((case, verdict))
    return found


def right_alone(case: Case) -> bool:
    """Whether Math-Verify with its defaults gives the expected verdict."""
    from math_verify import parse, verify

    return verify(parse(case.golds[0]), parse(case.response)) == case.expected


def differing(judged: Sequence[tuple[Case, Verdict]]) -> list[tuple[Case, Verdict]]:
    """The cases whose verdict is not the expected one."""
    return [(case, verdict) for case, verdict in judged if verdict.correct != case.expected]


def _line(case: Case, verdict: Verdict) -> str:
    gold, response = (
        text if len(text) <= MAX_SHOWN else f"...{text[-MAX_SHOWN:]}" for text in (" or ".join(case.golds), case.response)
    )
    status = "" if verdict.status == "ok" else f" ({verdict.status}: {verdict.detail})"
    found = f"{int(verdict.correct)}, expected {int(case.expected)}{status}"
    return f"{case.origin}: gold {gold!r}, response {response!r}: {found}"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE.jsonl")
    parser.add_argument("--math-verify-checkout", type=Path, metavar="DIR", help="also the cases of its tests/")
    parser.add_argument("--grader", choices=ALL, action="append", help="only this one; may be repeated")
    parser.add_argument("--show", type=int, default=20, help="differing cases to print for each grader and source")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--timeout", type=float, default=30.0, help="seconds a response")
    args = parser.parse_args(argv)
    if not args.files and args.math_verify_checkout is None:
        parser.error("found neither files nor --math-verify-checkout")
    try:
        sources = {str(file): read_rows(file) for file in args.files}
        theirs = [] if args.math_verify_checkout is None else literal_cases(args.math_verify_checkout)
    except UserError as error:
        print(f"grader_cases: error: {error}", file=sys.stderr)
        return 2
    rows, listed, failed = [], [], False
    for name, cases in sources.items():
        for grader, judged in grade(cases, args.grader or ALL, args).items():
            wrong = differing(judged)
            failed |= bool(wrong)
            rows.append(f"| {name} | {grader} | {len(judged)} | {len(wrong)} | |")
            listed += [f"{grader}: {_line(*one)}" for one in wrong[: args.show]]
    if theirs:
        wrong = differing(grade(theirs, ("math_verify",), args)["math_verify"])
        excused = {case for case in theirs if not right_alone(case)}
        failed |= any(case not in excused for case, _ in wrong)
        rows.append(f"| {args.math_verify_checkout}/tests | math_verify | {len(theirs)} | {len(wrong)} | {len(excused)} |")
        listed += [f"{'as Math-Verify' if one[0] in excused else 'math_verify'}: {_line(*one)}" for one in wrong]
    print("| cases | grader | graded | differ | of Math-Verify alone |\n|---|---|---|---|---|")
    print("\n".join([*rows, "", *listed]))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
