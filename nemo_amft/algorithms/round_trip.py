"""Whether graders find right what is right once it has been through the tokenizer, as every response of the policy has.

A tokenizer that loses what graders look for (a marker, a brace, a line break) gives each response a reward of 0, and nothing
else tells. So, before a model is built, a few demonstrations are graded as they stand, and again encoded and decoded.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from nemo_amft.algorithms.run_data import RunData
from nemo_amft.data.chat import ChatTemplate, responses
from nemo_amft.data.golds import split_golds
from nemo_amft.data.thoughts import CLOSE, OPEN, thoughts_of
from nemo_amft.tasks.rewards import RewardPool
from nemo_amft.types import Example, UserError

logger = logging.getLogger(__name__)

NUM_EXAMPLES = 4
SHOWN = 20
"""Characters on either side of a difference."""


def check_round_trip(
    data: RunData, chat: ChatTemplate, graders: RewardPool, several_turns: bool, thinking: bool | None
) -> None:
    """Grade some of the demonstrations, or where none has an answer to be graded by, boxed gold answers; what takes longer than
    the pool gives it is passed over. Demonstrations that earn nothing as they stand are warned of.

    Raises:
        UserError: one does earn its reward as it stands, and another once encoded and decoded.
    """
    shown = [example for example in data.some_demonstrations(NUM_EXAMPLES) if example.answer]
    said = [responses(example) for example in shown]
    if not shown and not several_turns:
        shown = [example for example in data.some_prompts(NUM_EXAMPLES) if example.answer]
        said = [(boxed(example, chat, thinking),) for example in shown]
    read = [tuple(chat.response_text([*chat.encode(text), chat.eos_token_id]) for text in texts) for texts in said]
    items = [
        (example.answer, list(texts) if several_turns else texts[-1], True)
        for all_texts in (said, read)
        for example, texts in zip(shown, all_texts, strict=True)
    ]
    verdicts = graders.score(items)
    unearned = []
    for example, before, after, raw, back in zip(
        shown, said, read, verdicts[: len(shown)], verdicts[len(shown) :], strict=True
    ):
        if "timeout" in (raw.status, back.status):
            continue
        if raw.reward != back.reward:
            where = example.metadata.get("origin", example.id)
            raise UserError(
                f"{where}: {'boxed answer' if example.demonstration is None else 'demonstration'}: earns {raw.reward:g}, and "
                f"{back.reward:g} once the tokenizer has encoded and decoded it: {_difference(before, after)}; expected a "
                "tokenizer that keeps what graders read (model.tokenizer)"
            )
        if not raw.correct and example.demonstration is not None:
            unearned.append((example.id, raw.detail))
    if unearned:
        name, why = unearned[0]
        logger.warning(
            "%d of %d demonstrations looked at do not count as correct (first: %s%s)",
            len(unearned), len(shown), name, f", {why}" if why else "",
        )  # fmt: skip


def boxed(example: Example, chat: ChatTemplate, thinking: bool | None) -> str:
    """A response with the gold answer in a box, after thoughts where there have to be some."""
    answer = f"\\boxed{{{split_golds(example.answer)[0]}}}"
    if not thinking:
        return answer
    opened = thoughts_of(chat, [example]).state == "open"
    return f"{'' if opened else OPEN}\n{CLOSE}\n{answer}"


def _difference(before: Sequence[str], after: Sequence[str]) -> str:
    """Where two versions of some texts first part."""
    old, new = next(((a, b) for a, b in zip(before, after, strict=True) if a != b), (before[-1], after[-1]))
    at = next((i for i, (a, b) in enumerate(zip(old, new, strict=False)) if a != b), min(len(old), len(new)))
    around = slice(max(0, at - SHOWN), at + SHOWN)
    return f"{old[around]!r} comes back as {new[around]!r}"
