"""TAPO as the AMFT paper simplifies it: rollouts guided by a thought pattern taken from demonstrations.

The original (arXiv 2505.15692, TemplateRL) searches templates by MCTS and picks one by the complexity of the problem's
conditions. None of that is built here: a pattern is the outline of some demonstration, chosen at random.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from nemo_amft.algorithms.methods.base import Demonstration, Group, GroupMethod, RLConfig, Term, rl_term, text_of
from nemo_amft.types import Example, UserError

if TYPE_CHECKING:
    from nemo_amft.config.schema import Config, DataConfig


@dataclass(frozen=True)
class TAPOConfig:
    patterns: int = 16
    """Patterns in the library, from the first demonstrations that differ in outline."""
    pattern_chars: int = 200
    """Longest outline."""
    guided: float = 0.5
    """Share of prompts that get a pattern; the others stay as they are."""
    instruction: str = "Think along these lines: {pattern}"
    """How a pattern is put before the user's message."""
    rl: RLConfig = field(default_factory=lambda: RLConfig("dr_grpo", loss_aggregation="seq_mean_token_sum_norm"))
    """The RL term."""


class TAPO(GroupMethod):
    """Dr.GRPO on prompts some of which carry a thought pattern; the group's advantage is over responses to the same prompt."""

    Config = TAPOConfig

    def __init__(self, config: TAPOConfig, longest_response: int):
        super().__init__(config, longest_response)
        self.library: list[str] = []
        self._guided = self._too_long = 0

    @staticmethod
    def validate(config: Config, plugin_config: TAPOConfig) -> None:
        """Raises UserError for a critic, and for an instruction that leaves the pattern out."""
        GroupMethod.validate(config, plugin_config)
        if "{pattern}" not in plugin_config.instruction:
            raise UserError(f"method.instruction: found {plugin_config.instruction!r}, expected a text with {{pattern}} in it")

    def most_imitated(self, data: DataConfig) -> int:
        return 0

    def added_prompt_tokens(self, data: DataConfig) -> int:
        return self.config.pattern_chars + len(self.config.instruction)

    def prompts(self, step: int, examples: Sequence[Example]) -> list[Example]:
        for example in examples:
            if len(self.library) < self.config.patterns and (new := self.outline(example)) and new not in self.library:
                self.library.append(new)
        draw = random.Random(f"{self.tools.run_seed}/tapo/{step}")
        self._guided = self._too_long = 0
        return [self.guided(example, draw) for example in examples]

    def guided(self, example: Example, draw: random.Random) -> Example:
        """The example, perhaps with a pattern before its last message: not where the prompt would become too long."""
        if draw.random() >= self.config.guided or not self.library:
            return example
        *before, last = example.messages
        text = self.config.instruction.replace("{pattern}", draw.choice(self.library)) + "\n" + last["content"]
        longer = replace(example, messages=(*before, {**last, "content": text}))
        if not self.tools.fits(longer):
            self._too_long += 1
            return example
        self._guided += 1
        return longer

    def outline(self, example: Example) -> str:
        """A demonstration with its numbers hidden, so that it says how and not what."""
        return re.sub(r"\d+(\.\d+)?", "#", " ".join(text_of(example).split()))[: self.config.pattern_chars]

    def compose(self, step: int, groups: Sequence[Group], demonstrations: Sequence[Demonstration]) -> list[Term]:
        return [rl_term(groups, self.config.rl, self.longest_response)]

    def metrics(self) -> dict[str, float]:
        return {"method/guided": float(self._guided), "method/too_long": float(self._too_long)}

    def state_dict(self) -> dict[str, Any]:
        return {"library": list(self.library)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.library = list(state["library"])
