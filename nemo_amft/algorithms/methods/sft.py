"""Supervised fine-tuning alone, with an optional anchor to the policy it started from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from nemo_amft.algorithms.demonstration_losses import AnchoredNLL
from nemo_amft.algorithms.methods.base import Demonstration, Group, Method, Term, sft_term
from nemo_amft.types import Example


@dataclass(frozen=True)
class SFTConfig:
    kl_coef: float = 0.0
    """Coefficient of KL(policy || policy at the end of warm-up) on the demonstrations; 0 is plain SFT."""


class SFT(Method):
    """Token-mean NLL of the step's demonstrations; nothing is rolled out. With kl_coef SRFT's baseline SFT_KL (appendix B)."""

    Config = SFTConfig
    has_both_terms = False
    rolls_out = False

    def __init__(self, config: SFTConfig, longest_response: int):
        super().__init__(config, longest_response)
        self.uses_reference = config.kl_coef > 0.0

    def prompts(self, step: int, examples: Sequence[Example]) -> list[Example]:
        return []

    def compose(self, step: int, groups: Sequence[Group], demonstrations: Sequence[Demonstration]) -> list[Term]:
        term = sft_term(demonstrations)
        if self.config.kl_coef:
            term.loss, term.needs = AnchoredNLL(self.config.kl_coef), frozenset({"reference_log_prob"})
        return [term]
