"""UFT (arXiv 2505.16984): rollouts that start from a part of the demonstration, shorter as training goes on."""

from __future__ import annotations

import math
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from nemo_amft.algorithms.methods.base import Demonstration, Group, GroupMethod, RLConfig, Term, rl_term, sft_term, text_of
from nemo_amft.types import Example, TokenSequence

if TYPE_CHECKING:
    from nemo_amft.config.schema import DataConfig


@dataclass(frozen=True)
class UFTConfig:
    hint_steps: int = 300
    """T_hint: steps with hints; none after."""
    hint_start: float = 0.95
    """Share of a hint's chunks that is expected at first: the binomial's p."""
    hint_end: float = 0.05
    """The same in the last step with hints, reached along a cosine."""
    max_chunks: int = 5
    """Chunks that a demonstration is cut into, at most."""
    hint_coef: float = 0.001
    """c, coefficient of the hint's token-mean NLL."""
    rl: RLConfig = field(default_factory=lambda: RLConfig("grpo", kl_coef=0.001))
    """The RL term, over what follows the hint."""


class UFT(GroupMethod):
    """Each prompt gets the first l of the n chunks of its demonstration, l ~ Binomial(n, p_t): the responses go on from there.
    L = L_GRPO(what follows the hint) + c NLL(hint)."""

    Config = UFTConfig
    imitates_a_choice = True

    def __init__(self, config: UFTConfig, longest_response: int):
        super().__init__(config, longest_response)
        self._hinted = self._cut = 0.0

    def added_prompt_tokens(self, data: DataConfig) -> int:
        return data.max_demonstration_tokens

    def probability(self, step: int) -> float:
        """p_t, t counted from 1: a cosine from hint_start to hint_end, which it reaches at T_hint, and 0 after."""
        config, t = self.config, step + 1
        if t > config.hint_steps:
            return 0.0
        return config.hint_end + (config.hint_start - config.hint_end) * (1 + math.cos(math.pi * t / config.hint_steps)) / 2

    def prompts(self, step: int, examples: Sequence[Example]) -> list[Example]:
        draw, p = random.Random(f"{self.tools.run_seed}/uft/{step}"), self.probability(step)
        self._hinted = self._cut = 0.0
        return [self.hinted(example, draw, p) for example in examples]

    def hinted(self, example: Example, draw: random.Random, p: float) -> Example:
        """The example with its hint, shortened by whole chunks where it would leave the response no room."""
        parts = chunks(text_of(example), self.config.max_chunks)
        taken = sum(draw.random() < p for _ in parts)
        for n in range(taken, 0, -1):
            longer = replace(example, response_prefix="".join(parts[:n]))
            if self.tools.fits(longer):
                self._hinted += 1
                self._cut += n < taken
                return longer
        self._cut += taken > 0
        return example

    def compose(self, step: int, groups: Sequence[Group], demonstrations: Sequence[Demonstration]) -> list[Term]:
        hints = [hint for hint in (self.hint(group) for group in groups) if hint is not None]
        imitation = replace(sft_term(hints), weight=self.config.hint_coef)
        return [imitation, rl_term(groups, self.config.rl, self.longest_response)]

    def hint(self, group: Group) -> Demonstration | None:
        """The prompt and its hint, trained on the hint; None where there is no hint."""
        tokens = len(self.tools.encode(group.example.response_prefix))
        if not tokens:
            return None
        sequence = group.samples[0].sequence
        end = sequence.trained.index(True)  # the first response begins here, whether or not more turns follow
        trained = tuple(end - tokens <= i for i in range(end))
        return Demonstration(group.example, TokenSequence(sequence.tokens[:end], trained))

    def metrics(self) -> dict[str, float]:
        return {"method/hinted": self._hinted, "method/hints_cut": self._cut}


def chunks(text: str, most: int) -> list[str]:
    """`text` in up to `most` pieces of about equal numbers of lines or sentences, which joined give it back.

    Text with fewer of those is cut between words, and text without spaces (generated tasks) between characters.
    """
    pieces: list[str] = []
    for border in (r"(?<=\n)|(?<=[.!?] )", r"(?<=\s)", r""):
        pieces = [piece for piece in re.split(border, text) if piece]
        if len(pieces) >= most:
            break
    n = min(most, len(pieces))
    return ["".join(pieces[round(len(pieces) * i / n) : round(len(pieces) * (i + 1) / n)]) for i in range(n)]
