"""TAPO as the AMFT paper simplifies it: rollouts guided by a thought pattern taken from demonstrations.

The original (arXiv 2505.15692, TemplateRL) searches templates by MCTS and picks one by the complexity of the problem's
conditions. None of that is built here: a pattern is the outline of some demonstration, chosen at random.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from nemo_amft.algorithms.methods.base import Demonstration, Group, Method, RLConfig, Term, rl_term
from nemo_amft.types import Example


@dataclass(frozen=True)
class TAPOConfig:
    patterns: int = 16
    """Patterns in the library, from the first demonstrations that differ in outline."""
    pattern_chars: int = 200
    """Longest outline."""
    guided: float = 0.5
    """Share of prompts that get a pattern; the others stay as they are."""
    instruction: str = "Think along these lines: {pattern}"
    """How a pattern is added to the user's message."""
    seed: int = 1
    """Seeds the choice."""
    rl: RLConfig = field(default_factory=lambda: RLConfig("dr_grpo", loss_aggregation="seq_mean_token_sum_norm"))
    """The RL term."""


class TAPO(Method):
    """Dr.GRPO on prompts some of which carry a thought pattern; the group's advantage is over responses to the same prompt."""

    Config = TAPOConfig
    needs_demonstrations = True

    def __init__(self, config: TAPOConfig, max_new_tokens: int):
        super().__init__(config, max_new_tokens)
        self.use_rl(config.rl)
        self.library: list[str] = []

    def prompts(self, step: int, examples: Sequence[Example]) -> list[Example]:
        for example in examples:
            if len(self.library) < self.config.patterns and (new := self.outline(example)) and new not in self.library:
                self.library.append(new)
        draw = random.Random(f"{self.config.seed} {step}")
        return [self.guide(e, draw.choice(self.library)) if draw.random() < self.config.guided else e for e in examples]

    def outline(self, example: Example) -> str:
        """A demonstration with its numbers hidden, so that it says how and not what."""
        return re.sub(r"\d+(\.\d+)?", "#", " ".join((example.demonstration or "").split()))[: self.config.pattern_chars]

    def guide(self, example: Example, pattern: str) -> Example:
        """The example with a pattern in its last message."""
        *before, last = example.messages
        text = f"{last['content']}\n{self.config.instruction.format(pattern=pattern)}"
        return replace(example, messages=(*before, {**last, "content": text}))

    def compose(self, step: int, groups: Sequence[Group], demonstrations: Sequence[Demonstration]) -> list[Term]:
        return [rl_term(groups, self.config.rl, self.max_new_tokens)]

    def state_dict(self) -> dict:
        return {"library": list(self.library)}

    def load_state_dict(self, state) -> None:
        self.library = list(state["library"])
