"""Answers graded per minute by a RewardPool of two processes, for each grader of mathematics and for multiple choice.

    python benchmarks/grading.py [--answers 10000] [--workers 2]

Problems and responses are made up, in the forms of the benchmarks' answers: integers, fractions, decimals, roots, tuples,
formulas, words; eight responses a problem, of which half are right, in the same or another form.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable

from common import write_result

from nemo_amft.tasks.math.graders import BenchmarkVerifier, for_grader
from nemo_amft.tasks.rewards import RewardPool

RESPONSES = 8
THOUGHTS = 40
"""Sentences of a response before its end; a response has some 3,000 characters."""


def integer(r: random.Random) -> tuple[str, str, str]:
    """A gold answer, the same in another form, and a wrong one."""
    n = r.randint(-999, 99_999)
    return str(n), r.choice([f"{n:,}", f"{n}.0", rf"{n}\text{{ units}}"]), str(n + r.choice([-1, 1, 10]))


def fraction(r: random.Random) -> tuple[str, str, str]:
    a, b = r.randint(1, 60), r.randint(2, 60)
    return rf"\frac{{{a}}}{{{b}}}", r.choice([f"{a}/{b}", rf"\dfrac{{{3 * a}}}{{{3 * b}}}"]), rf"\frac{{{b}}}{{{a + 1}}}"


def decimal(r: random.Random) -> tuple[str, str, str]:
    n = r.randint(100, 9999)
    return f"{n / 100:.2f}", rf"{n / 100:.2f}\%", f"{(n + 7) / 100:.2f}"


def root(r: random.Random) -> tuple[str, str, str]:
    a, b = r.randint(2, 9), r.choice([2, 3, 5, 7, 11])
    return rf"{a}\sqrt{{{b}}}", rf"\sqrt{{{a * a * b}}}", rf"{a + 1}\sqrt{{{b}}}"


def pair(r: random.Random) -> tuple[str, str, str]:
    a, b = r.randint(-9, 9), r.randint(2, 9)
    return rf"\left( {a}, \frac{{\pi}}{{{b}}} \right)", rf"({a}, \pi/{b})", rf"({b}, \pi/{abs(a) + 1})"


def formula(r: random.Random) -> tuple[str, str, str]:
    a, b = r.randint(2, 9), r.randint(1, 9)
    return rf"\frac{{x^2 - {a * a}}}{{{b}}}", rf"\frac{{(x-{a})(x+{a})}}{{{b}}}", rf"\frac{{x^2 + {a * a}}}{{{b}}}"


def word(r: random.Random) -> tuple[str, str, str]:
    names = ["Evelyn", "Briana", "Carla", "Debra", "Angela"]
    gold, wrong = r.sample(names, 2)
    return rf"\text{{{gold}}}", gold, rf"\text{{{wrong}}}"


FORMS: list[Callable[[random.Random], tuple[str, str, str]]] = [integer, integer, fraction, decimal, root, pair, formula, word]
SENTENCES = (
    "Let $x = {n}$ be the number we look for, so $x + {m} = {s}$.",
    r"Then \[ \frac{{{n}}}{{{m}}} \cdot {m} = {n}. \]",
    "Wait, I should check the case $n = {m}$ again.",
    "Substituting gives ${n}k + {m}$, which is at most ${s}$.",
)


def response(r: random.Random, answer: str) -> str:
    """Thoughts, then an end with the answer in a box."""
    drawn = [(r.choice(SENTENCES), r.randint(1, 99), r.randint(1, 99)) for _ in range(THOUGHTS)]
    *thoughts, last, before = (text.format(n=n, m=m, s=n + m) for text, n, m in drawn)
    return f"{' '.join(thoughts)}\n</think>\n\n{before} {last} The answer is $\\boxed{{{answer}}}$."


def free_answers(count: int, grader: str) -> list[tuple[str, str, bool]]:
    """Items for a pool: half right, half of those in another form than the gold's."""
    items = []
    for problem in range(count // RESPONSES):
        r = random.Random(problem)
        gold, same, wrong = FORMS[problem % len(FORMS)](r)
        for i in range(RESPONSES):
            items.append((for_grader(grader, gold), response(r, (gold, same, wrong, wrong)[i % 4]), True))
    return items


def choices(count: int) -> list[tuple[str, str, bool]]:
    """Items of multiple choice."""
    r = random.Random(1)
    return [(for_grader("choice", r.choice("ABCD")), response(r, r.choice("ABCD")), True) for _ in range(count)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--answers", type=int, default=10_000)
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    found: dict[str, object] = {}
    with RewardPool(BenchmarkVerifier(thinking=True), args.workers, 10.0, 2048) as pool:
        pool.score(free_answers(8 * RESPONSES, "oat") + free_answers(8 * RESPONSES, "math_verify"))  # imports, first parses
        for grader in ("math_verify", "oat", "choice"):
            items = choices(args.answers) if grader == "choice" else free_answers(args.answers, grader)
            started = time.perf_counter()
            verdicts = pool.score(items)
            seconds = time.perf_counter() - started
            found[grader] = {
                "answers": len(items),
                "seconds": round(seconds, 2),
                "answers_per_minute": round(60 * len(items) / seconds),
                "correct": sum(v.correct for v in verdicts) / len(verdicts),
                "timeouts": sum(v.status == "timeout" for v in verdicts),
                "errors": sum(v.status == "error" for v in verdicts),
            }
            print(grader, found[grader], flush=True)
    path = write_result("grading", {"workers": args.workers, "graders": found})
    print(path)


if __name__ == "__main__":
    main()
