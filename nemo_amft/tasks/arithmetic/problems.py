"""Text of arithmetic problems and of their worked solutions."""

from __future__ import annotations

import operator
import random
from collections.abc import Callable

ALPHABET = "0123456789+-*=;#"
"""Every character that a problem or its solution can hold, whatever the difficulty."""

OPERATIONS: dict[str, Callable[[int, int], int]] = {"+": operator.add, "-": operator.sub, "*": operator.mul}


def draw(generator: random.Random, num_operands: int, max_operand: int, operators: str) -> tuple[list[int], list[str]]:
    """Operands, uniform in 1..max_operand, and the operators between them, uniform in `operators`."""
    operands = [generator.randint(1, max_operand) for _ in range(num_operands)]
    return operands, [generator.choice(operators) for _ in range(num_operands - 1)]


def write_problem(operands: list[int], operators: list[str]) -> str:
    """The problem as the model reads it, for example "7*3+4="."""
    tail = "".join(f"{symbol}{operand}" for symbol, operand in zip(operators, operands[1:], strict=True))
    return f"{operands[0]}{tail}="


def solve(operands: list[int], operators: list[str], modulus: int | None, worked_steps: bool) -> tuple[int, str]:
    """The result and the demonstration, for example (25, "7*3=21;21+4=25#25").

    Operations apply strictly from left to right, without precedence: every step reads one running value and one operand. With a
    modulus each step is reduced to 0..modulus-1.
    """
    value, steps = operands[0], []
    for symbol, operand in zip(operators, operands[1:], strict=True):
        result = OPERATIONS[symbol](value, operand)
        result = result if modulus is None else result % modulus
        steps.append(f"{value}{symbol}{operand}={result}")
        value = result
    return value, f"{';'.join(steps) if worked_steps else ''}#{value}"
