"""ReLIFT (arXiv 2506.07527): RL, and now and then an SFT step on the demonstrations of prompts that no rollout solved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from nemo_amft.algorithms.methods.base import Demonstration, Group, GroupMethod, RLConfig, Term, rl_term, sft_term
from nemo_amft.types import Example

if TYPE_CHECKING:
    from nemo_amft.config.schema import DataConfig


@dataclass(frozen=True)
class ReLIFTConfig:
    rl: RLConfig = field(
        default_factory=lambda: RLConfig("dr_grpo", loss_aggregation="seq_mean_token_sum_norm", entropy_coef=0.001)
    )
    """The RL term."""
    buffer_size: int = 128
    """Unsolved prompts that make an SFT step, the newest first."""
    every: int | None = None
    """SFT step every so many steps instead, on what the buffer holds: AMFT's description. None: when the buffer is full."""


class ReLIFT(GroupMethod):
    """RL; a prompt none of whose rollouts is correct goes to a buffer. When that holds `buffer_size`, an update of its own
    follows on the demonstrations of the newest ones, and the buffer is emptied.

    The source takes that step with an AdamW of its own; here both share one, which saves a second optimiser state.
    """

    Config = ReLIFTConfig
    imitates_a_choice = True

    def __init__(self, config: ReLIFTConfig, longest_response: int):
        super().__init__(config, longest_response)
        self.buffer: list[Example] = []
        """Oldest first."""
        self._imitated = 0

    def most_imitated(self, data: DataConfig) -> int:
        return self.config.buffer_size

    def compose(self, step: int, groups: Sequence[Group], demonstrations: Sequence[Demonstration]) -> list[Term]:
        self.buffer += [g.example for g in groups if not any(s.verdict.correct for s in g.samples)]
        terms = [rl_term(groups, self.config.rl, self.longest_response)]
        self._imitated = 0
        if self.due(step):
            newest = self.buffer[: -self.config.buffer_size - 1 : -1]
            shown = [d for d in map(self.tools.demonstration, newest) if d is not None]
            terms.append(replace(sft_term(shown), own_update=True))
            self._imitated, self.buffer = len(shown), []
        return terms

    def due(self, step: int) -> bool:
        """Whether this step ends with an SFT update."""
        if self.config.every is not None:
            return bool(self.buffer) and (step + 1) % self.config.every == 0
        return len(self.buffer) >= self.config.buffer_size

    def metrics(self) -> dict[str, float]:
        return {"method/buffer": float(len(self.buffer)), "method/imitated": float(self._imitated)}

    def state_dict(self) -> dict[str, Any]:
        return {"buffer": [asdict(example) for example in self.buffer]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.buffer = [_example(row) for row in state["buffer"]]


def _example(row: Mapping[str, Any]) -> Example:
    """What asdict and JSON made of an example, undone."""
    shown = row["demonstration"]
    turns = tuple(shown) if isinstance(shown, list) else shown
    return Example(**{**row, "messages": tuple(row["messages"]), "demonstration": turns})
