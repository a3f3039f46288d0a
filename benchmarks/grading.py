"""Answers graded per minute by a RewardPool of two processes, for each grader of mathematics and for multiple choice.

    python benchmarks/grading.py [--answers 10000] [--workers 2]

Problems and responses are made up, in the forms of the benchmarks' answers: integers, fractions, decimals, roots, tuples,
intervals, matrices, lists, formulas, words. Eight responses a problem: two in the gold's form, two in another, four wrong, each
with an answer of its own.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable

import psutil
from common import write_result

from nemo_amft.data.golds import for_grader
from nemo_amft.tasks.math.graders import BenchmarkVerifier
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


def interval(r: random.Random) -> tuple[str, str, str]:
    a, b = r.randint(-20, 0), r.randint(1, 20)
    return rf"({a}, {b}]", rf"\left({a},{b}\right]", rf"({a - 1}, {b}]"


def matrix(r: random.Random) -> tuple[str, str, str]:
    a, b, c, d = (r.randint(-9, 9) for _ in range(4))
    rows = rf"{a} & {b} \\ {c} & {d}"
    return (
        rf"\begin{{pmatrix}} {rows} \end{{pmatrix}}",
        rf"\begin{{bmatrix}} {rows} \end{{bmatrix}}",
        rows.replace("&", "& 1 &"),
    )


def several(r: random.Random) -> tuple[str, str, str]:
    a, b, c = sorted(r.sample(range(-30, 30), 3))
    return f"{a}, {b}, {c}", f"{c}, {a}, {b}", f"{a}, {b}, {c + 1}"


def polynomial(r: random.Random) -> tuple[str, str, str]:
    a, b, c = (r.randint(2, 9) for _ in range(3))
    return rf"{a}x^2 y - {b}y + {c}", rf"y({a}x^2 - {b}) + {c}", rf"{a}x^2 y + {b}y + {c}"


def word(r: random.Random) -> tuple[str, str, str]:
    names = ["Evelyn", "Briana", "Carla", "Debra", "Angela"]
    gold, wrong = r.sample(names, 2)
    return rf"\text{{{gold}}}", gold, rf"\text{{{wrong}}}"


FORMS: list[Callable[[random.Random], tuple[str, str, str]]] = [
    integer, integer, integer, fraction, decimal, root, pair, interval, matrix, several, formula, polynomial, word,
]  # fmt: skip
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
    """Items for a pool; the wrong answers are near misses, and the golds of other problems of the form."""
    items = []
    for problem in range(count // RESPONSES):
        r = random.Random(problem)
        form = FORMS[problem % len(FORMS)]
        gold, same, wrong = form(r)
        others = [form(r)[0] for _ in range(RESPONSES // 2 - 1)]
        answers = [gold, gold, same, same, wrong, *others]
        items += [(for_grader(grader, gold), response(r, answer), True) for answer in answers]
    return items


def choices(count: int) -> list[tuple[str, str, bool]]:
    """Items of multiple choice."""
    r = random.Random(1)
    return [(for_grader("choice", r.choice("ABCD")), response(r, r.choice("ABCD")), True) for _ in range(count)]


def processor_seconds() -> float:
    """What the pool's processes have computed so far: on a busy machine it says more than the clock."""
    return sum(sum(child.cpu_times()[:2]) for child in psutil.Process().children())


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
            started, busy = time.perf_counter(), processor_seconds()
            verdicts = pool.score(items)
            seconds, busy = time.perf_counter() - started, processor_seconds() - busy
            found[grader] = {
                "answers": len(items),
                "seconds": round(seconds, 2),
                "processor_seconds": round(busy, 2),
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
