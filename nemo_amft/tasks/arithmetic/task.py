"""The arithmetic task: problems are generated, so a run needs no files, and its difficulty is a set of knobs."""

from __future__ import annotations

import functools
import random
from dataclasses import dataclass
from typing import ClassVar

from nemo_amft.config.schema import DataConfig
from nemo_amft.tasks.arithmetic.problems import OPERATIONS, draw, solve, write_problem
from nemo_amft.tasks.arithmetic.verifier import verify
from nemo_amft.tasks.base import Split, Verifier
from nemo_amft.types import Example, UserError


@dataclass(frozen=True)
class ArithmeticConfig:
    num_train: int = 4096
    """Training problems."""
    num_validation: int = 256
    """Problems of D_val, disjoint from the others by text."""
    num_test: int = 512
    """Problems of the final evaluation, disjoint from the others by text."""
    num_longer: int = 256
    """Problems out of distribution, with one operand more than `operands` allows: evaluated at the start and the end."""
    operands: tuple[int, int] = (3, 4)
    """Fewest and most operands of a problem; each number between is equally likely."""
    max_operand: int = 5
    """Operands are uniform in 1..max_operand; with modulus 10 and three operators, 5 makes 150 facts to learn, 9 makes 270."""
    operators: str = "+-*"
    """Operators that a problem may hold, applied strictly from left to right."""
    kept_operators: str = ""
    """Others, which this run does not train. Chains of them alone are evaluated as the set `kept`, num_longer of them: what a
    model that could do them before has kept of that."""
    modulus: int | None = 10
    """Every step's result is reduced to 0..modulus-1, which bounds the facts there are to learn. None: plain integers."""
    worked_steps: bool = True
    """Demonstrations write out each step before the answer. False: the answer alone, which a small model hardly learns."""

    def __post_init__(self) -> None:
        fewest, most = self.operands
        known = set(self.operators) <= set(OPERATIONS) and len(set(self.operators)) == len(self.operators) > 0
        others = set(OPERATIONS) - set(self.operators)
        kept = set(self.kept_operators) <= others and len(set(self.kept_operators)) == len(self.kept_operators)
        checks = (
            (2 <= fewest <= most, "operands", self.operands, "two numbers, the first at least 2, the second no smaller"),
            (self.max_operand >= 1, "max_operand", self.max_operand, "at least 1"),
            (known, "operators", self.operators, f"some of {''.join(OPERATIONS)!r}, each once"),
            (kept, "kept_operators", self.kept_operators, f"some of {''.join(sorted(others))!r}, each once"),
            (self.modulus is None or self.modulus >= 2, "modulus", self.modulus, "null or at least 2"),
            (self.num_train >= 1, "num_train", self.num_train, "at least 1"),
            (self.num_validation >= 0, "num_validation", self.num_validation, "at least 0"),
            (self.num_test >= 0, "num_test", self.num_test, "at least 0"),
            (self.num_longer >= 0, "num_longer", self.num_longer, "at least 0"),
        )
        for holds, key, found, expected in checks:
            if not holds:
                raise UserError(f"task.{key}: found {found!r}, expected {expected}")
        wanted, distinct = self.num_train + self.num_validation + self.num_test, self._num_distinct()
        # Drawing distinct problems by rejection slows down as they run out; half of them is ample and quick.
        if wanted > distinct // 2:
            raise UserError(
                f"task.num_train + num_validation + num_test: found {wanted}, expected at most {distinct // 2}, half of the "
                f"{distinct} problems with operands={list(self.operands)}, max_operand={self.max_operand}"
            )

    def _num_distinct(self) -> int:
        fewest, most = self.operands
        return sum(self.max_operand**n * len(self.operators) ** (n - 1) for n in range(fewest, most + 1))


class ArithmeticTask:
    """Chains such as "7*3+4=" with the demonstration "7*3=1;1+4=5#5" (modulus 10); reward 1 for the right number after '#'."""

    Config: ClassVar[type[ArithmeticConfig]] = ArithmeticConfig
    generated = True

    def __init__(self, config: ArithmeticConfig, data: DataConfig, seed: int) -> None:
        """Raises UserError if data names files, which this task would silently ignore."""
        for key in ("train", "validation", "test"):
            found = getattr(data, key)
            if found is not None:
                raise UserError(f"data.{key}: found {found!r}, expected null, as the arithmetic task generates its problems")
        self.config = config
        self.seed = seed

    def examples(self, split: Split) -> list[Example]:
        """Problems of `split`; the three splits share no problem text. Changing any size reshuffles all of them."""
        sizes = {"train": self.config.num_train, "validation": self.config.num_validation, "test": self.config.num_test}
        start = sum(size for name, size in list(sizes.items())[: list(sizes).index(split)])
        return [self._example(split, i, *p) for i, p in enumerate(self._problems[start : start + sizes[split]])]

    def evaluation_sets(self) -> dict[str, list[Example]]:
        """ "longer": the rule learnt, on longer chains than any seen. "kept": chains of task.kept_operators, where there are
        such."""
        config = self.config
        longer, kept = (random.Random(f"arithmetic/{name}/{self.seed}") for name in ("longer", "kept"))
        sets = {"longer": [self._draw(longer, config.operands[1] + 1) for _ in range(config.num_longer)]}
        if config.kept_operators:
            lengths = [kept.randint(*config.operands) for _ in range(config.num_longer)]
            sets["kept"] = [self._draw(kept, n, config.kept_operators) for n in lengths]
        return {name: [self._example(name, i, *drawn) for i, drawn in enumerate(found)] for name, found in sets.items()}

    def verifier(self) -> Verifier:
        """A function without state."""
        return verify

    @functools.cached_property
    def _problems(self) -> list[tuple[str, str, str]]:
        """Distinct (problem, answer, demonstration) of all splits, shuffled so that each split has the same mix of lengths.

        Short problems run out first while drawing, so without the shuffle the later splits would hold fewer of them.
        """
        config, generator = self.config, random.Random(f"arithmetic/{self.seed}")
        wanted = config.num_train + config.num_validation + config.num_test
        found: dict[str, tuple[str, str, str]] = {}
        while len(found) < wanted:
            drawn = self._draw(generator, generator.randint(*config.operands))
            found.setdefault(drawn[0], drawn)
        problems = list(found.values())
        generator.shuffle(problems)
        return problems

    def _draw(self, generator: random.Random, num_operands: int, allowed: str | None = None) -> tuple[str, str, str]:
        """(problem, answer, demonstration)."""
        config = self.config
        operands, operators = draw(generator, num_operands, config.max_operand, allowed or config.operators)
        answer, demonstration = solve(operands, operators, config.modulus, config.worked_steps)
        return write_problem(operands, operators), str(answer), demonstration

    @staticmethod
    def _example(name: str, index: int, problem: str, answer: str, demonstration: str) -> Example:
        messages = ({"role": "user", "content": problem},)
        return Example(f"arithmetic/{name}/{index}", messages, answer, demonstration, "arithmetic")
