"""A task that a model of random weights solves now and then: write characters whose codes add up to a multiple of 3."""

from __future__ import annotations

import random
from dataclasses import dataclass

from nemo_amft.types import Example, Verdict


@dataclass(frozen=True)
class TinyConfig:
    pass


def verify(answer: str, response: str, finished: bool) -> Verdict:
    correct = sum(map(ord, response)) % 3 == 0
    return Verdict(float(correct), correct)


class Tiny:
    """Prompts and demonstrations of different lengths; one demonstration in five is wrong."""

    Config = TinyConfig

    def __init__(self, config, data, seed):
        self.seed = seed

    def examples(self, split):
        draw = random.Random(f"{self.seed}/{split}")
        count = {"train": 40, "validation": 6, "test": 6}[split]
        return [
            Example(
                f"{split}-{i}",
                ({"role": "user", "content": "".join(draw.choices("abc", k=1 + i % 3))},),
                answer="",
                demonstration=_text(draw, 4 + i % 4, right=i % 5 != 4),
            )
            for i in range(count)
        ]

    def verifier(self):
        return verify


def _text(draw: random.Random, length: int, right: bool) -> str:
    while True:
        text = "".join(draw.choices("uvwxyz", k=length))
        if verify("", text, True).correct == right:
            return text
