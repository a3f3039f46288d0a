"""UFT (arXiv 2505.16984): rollouts that start from a part of the demonstration, shorter as training goes on."""

from __future__ import annotations

import math
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from nemo_amft.algorithms.methods.base import Demonstration, Group, Method, RLConfig, Term, rl_term, sft_term
from nemo_amft.types import Example, TokenSequence


@dataclass(frozen=True)
class UFTConfig:
    hint_steps: int = 300
    """T_hint: steps with hints; none after."""
    hint_start: float = 0.95
    """Share of a hint's chunks that is expected at first: the binomial's p."""
    hint_end: float = 0.05
    """The same at T_hint, reached along a cosine."""
    max_chunks: int = 5
    """Chunks that a demonstration is cut into, at most."""
    hint_coef: float = 0.001
    """c, coefficient of the hint's token-mean NLL."""
    seed: int = 1
    """Seeds the lengths of hints."""
    rl: RLConfig = field(default_factory=lambda: RLConfig("grpo", kl_coef=0.001))
    """The RL term, over what follows the hint."""


class UFT(Method):
    """Each prompt gets the first l of the n chunks of its demonstration, l ~ Binomial(n, p_t): the responses go on from there.
    L = L_GRPO(what follows the hint) + c NLL(hint)."""

    Config = UFTConfig
    needs_demonstrations = True

    def __init__(self, config: UFTConfig, max_new_tokens: int):
        super().__init__(config, max_new_tokens)
        self.use_rl(config.rl)
        self._share = 0.0

    def probability(self, step: int) -> float:
        """p_t: a cosine from hint_start to hint_end over hint_steps, 0 after."""
        config = self.config
        if step >= config.hint_steps:
            return 0.0
        return config.hint_end + (config.hint_start - config.hint_end) * (1 + math.cos(math.pi * step / config.hint_steps)) / 2

    def prompts(self, step: int, examples: Sequence[Example]) -> list[Example]:
        draw, p, hinted = random.Random(f"{self.config.seed} {step}"), self.probability(step), []
        for example in examples:
            parts = chunks(example.demonstration or "", self.config.max_chunks)
            taken = sum(draw.random() < p for _ in parts[:-1])  # never the whole: something must be left to write
            hinted.append(replace(example, response_prefix="".join(parts[:taken])))
        self._share = sum(bool(e.response_prefix) for e in hinted) / max(len(hinted), 1)
        return hinted

    def compose(self, step: int, groups: Sequence[Group], demonstrations: Sequence[Demonstration]) -> list[Term]:
        hints = [hint for hint in (self.hint(group) for group in groups) if hint is not None]
        imitation = replace(sft_term(hints), weight=self.config.hint_coef)
        return [imitation, rl_term(groups, self.config.rl, self.max_new_tokens)]

    def hint(self, group: Group) -> Demonstration | None:
        """The prompt and its hint, trained on the hint; None where there is no hint."""
        tokens = len(self.tools.encode(group.example.response_prefix))
        if not tokens:
            return None
        first = group.samples[0]
        end = len(first.sequence.tokens) - first.num_tokens
        trained = tuple(end - tokens <= i for i in range(end))
        return Demonstration(group.example, TokenSequence(first.sequence.tokens[:end], trained))

    def metrics(self) -> dict[str, float]:
        return {"method/hinted_prompts": self._share}


def chunks(text: str, most: int) -> list[str]:
    """`text` in up to `most` pieces of about equal numbers of lines or sentences, which joined give it back."""
    pieces = [piece for piece in re.split(r"(?<=\n)|(?<=[.!?] )", text) if piece]
    if len(pieces) < most:  # generated tasks have one line: words will do
        pieces = [piece for piece in re.split(r"(?<=\s)", text) if piece]
    n = min(most, len(pieces))
    return ["".join(pieces[len(pieces) * i // n : len(pieces) * (i + 1) // n]) for i in range(n)]
