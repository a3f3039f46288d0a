"""Do the graders accept a benchmark's own gold answers? Each is graded as if a model had written it into a box.

    python benchmarks/golds.py math500=FILE minerva=FILE ... [--show 5]

Prints a table: problems, accepted, and those that a grader let time out, for each grader; then the rejected ones.
"""

from __future__ import annotations

import argparse

from nemo_amft.data.golds import for_grader, split_golds
from nemo_amft.evaluation.config import EvaluationConfig
from nemo_amft.evaluation.problems import load_benchmark
from nemo_amft.tasks.math.graders import BenchmarkVerifier
from nemo_amft.tasks.math.task import MathConfig
from nemo_amft.tasks.rewards import RewardPool


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("benchmarks", nargs="+", metavar="NAME=FILE")
    parser.add_argument("--show", type=int, default=5, help="rejected golds to print for each grader")
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    print("| benchmark | grader | problems | accepted | timeouts |\n|---|---|---|---|---|")
    rejected: list[str] = []
    with RewardPool(BenchmarkVerifier(thinking=False), args.workers, 10.0, 2048) as pool:
        for name, source in (argument.split("=", 1) for argument in args.benchmarks):
            problems = load_benchmark(name, source, EvaluationConfig(), MathConfig())
            for grader in problems.graders:
                golds = [split_golds(example.answer) for example in problems.examples]
                items = [
                    (for_grader(grader, example.answer), rf"The answer is \boxed{{{gold[0]}}}.", True)
                    for example, gold in zip(problems.examples, golds, strict=True)
                ]
                verdicts = pool.score(items)
                accepted, late = sum(v.correct for v in verdicts), sum(v.status == "timeout" for v in verdicts)
                print(f"| {problems.title} | {grader} | {len(items)} | {accepted} | {late} |", flush=True)
                wrong = [gold[0] for gold, verdict in zip(golds, verdicts, strict=True) if not verdict.correct]
                rejected += [f"{problems.title}, {grader}: {gold}" for gold in wrong[: args.show]]
    print("\n".join(["", *rejected]))


if __name__ == "__main__":
    main()
