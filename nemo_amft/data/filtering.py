"""What does not fit: prompts that are too long are dropped, demonstrations that would be cut too often are refused."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from nemo_amft.data.chat import ChatTemplate
from nemo_amft.types import Example, UserError

logger = logging.getLogger(__name__)

MAX_MEASURED = 2048
"""Demonstrations that are tokenised to estimate how many are cut: 46,000 long ones would take minutes on every rank."""


def drop_long_prompts(examples: Sequence[Example], chat: ChatTemplate, max_prompt_tokens: int, name: str) -> list[Example]:
    """The examples whose prompt has at most `max_prompt_tokens` tokens; logs how many of `name` (data.train, say) it dropped.

    Raises UserError if none is left.
    """
    lengths = [len(chat.prompt_ids(example.messages)) for example in examples]
    kept = [example for example, length in zip(examples, lengths, strict=True) if length <= max_prompt_tokens]
    if examples and not kept:
        raise UserError(
            f"data.max_prompt_tokens: found {max_prompt_tokens}, expected at least {min(lengths)}, "
            f"the length of the shortest prompt of {name}"
        )
    if len(kept) < len(examples):
        dropped = len(examples) - len(kept)
        logger.warning("%s: %d of %d prompts dropped, longer than %d tokens", name, dropped, len(examples), max_prompt_tokens)
    return kept


def refuse_truncation(
    examples: Sequence[Example], chat: ChatTemplate, max_demonstration_tokens: int, max_truncated_fraction: float
) -> float:
    """The share of demonstrations longer than `max_demonstration_tokens`, end token included; UserError if above the limit.

    Beyond MAX_MEASURED demonstrations an evenly spaced sample of that many is measured. 0 where there is no demonstration.
    """
    demonstrations = [example.demonstration for example in examples if example.demonstration is not None]
    stride = max(1, -(-len(demonstrations) // MAX_MEASURED))
    sample = demonstrations[::stride]
    if not sample:
        return 0.0
    cut = sum(len(chat.turns(shown)[0]) > max_demonstration_tokens for shown in sample)
    fraction = cut / len(sample)
    found = f"{cut} of {len(sample)} demonstrations ({100 * fraction:.1f}%) longer than {max_demonstration_tokens} tokens"
    if fraction > max_truncated_fraction:
        raise UserError(
            f"data.max_demonstration_tokens: found {found}, expected at most {100 * max_truncated_fraction:g}% "
            "(data.max_truncated_fraction): a cut one loses its answer"
        )
    if cut:
        logger.warning("data.max_demonstration_tokens: %s will be cut", found)
    return fraction
