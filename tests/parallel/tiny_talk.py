"""A task of several turns that a model of random weights gets through in one to three."""

from __future__ import annotations

from collections.abc import Sequence

from nemo_amft.types import Example, Verdict
from tests.parallel import tiny_task


def judge(answer: str, responses: Sequence[str], finished: bool) -> Verdict:
    """Success with the first response whose characters' codes add up to a multiple of 3; three attempts."""
    last = tiny_task.verify(answer, responses[-1], finished)
    if last.correct:
        return Verdict(1.0 / len(responses), True)
    return Verdict(0.0, False, follow_up=f"{len(responses)}?" if len(responses) < 3 else None)


class TinyTalk(tiny_task.Tiny):
    max_turns = 3

    def examples(self, split):
        return [
            Example(e.id, e.messages, e.answer, ("u", "1?", e.demonstration) if i % 2 else e.demonstration)
            for i, e in enumerate(super().examples(split))
        ]

    def environment(self):
        return judge
