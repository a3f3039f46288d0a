"""Episodes of one or several turns: what a policy and its task have said to each other, as token ids."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from nemo_amft.algorithms.methods.base import Sample
from nemo_amft.types import Completion, Example, Request, TokenSequence, Verdict

if TYPE_CHECKING:
    from PIL.Image import Image

NOT_JUDGED = Verdict(0.0, False, "error", "not judged")


@dataclass
class Conversation:
    """One episode while it is drawn. The ids that the engine made are kept as they are, and trained on; the user's messages
    between them are context."""

    example: Example
    prompt: tuple[int, ...]
    tokens: list[int] = field(default_factory=list)
    """After the prompt."""
    trained: list[bool] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)
    responses: list[str] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)
    """The user's, after the first."""
    verdict: Verdict = NOT_JUDGED
    finished: bool = False
    images: Sequence[Image] = ()
    """All that the episode may show."""
    num_shown: int = 0
    """How many of them it has shown."""

    def request(self, seed: int | None) -> Request:
        """What asks for the next response."""
        return Request((*self.prompt, *self.tokens), seed, tuple(self.images[: self.num_shown]))

    def respond(self, completion: Completion, text: str) -> None:
        """Add a response; `text` is what the task is shown of it."""
        self.tokens += completion.token_ids
        self.trained += [True] * len(completion.token_ids)
        self.log_probs += completion.log_probs
        self.responses.append(text)
        self.finished = completion.finished

    def go_on(self, message: str, ids: Sequence[int], end_token_ids: Sequence[int], room: int) -> bool:
        """Add the user's message, `ids` of the template included. Where they take more than `room` tokens the conversation ends
        as cut instead; returns whether it goes on. A response without one of `end_token_ids`, as the limit or rollout.stop cut
        it, is ended by the first of them, which is not the policy's doing and so not trained on. One that ended as the template
        ends a turn, where that is another end token, is not ended twice."""
        last = self.tokens[-1]
        if self.finished and list(ids[:1]) == [last]:
            added = list(ids[1:])
        elif self.finished and last in end_token_ids:
            added = list(ids)
        else:
            added = [end_token_ids[0], *ids]
        if len(added) > room:
            self.finished = False
            return False
        self.tokens += added
        self.trained += [False] * len(added)
        self.log_probs += [0.0] * len(added)
        self.messages.append(message)
        return True

    def sample(self) -> Sample:
        """The episode, graded."""
        ahead = len(self.prompt)
        sequence = TokenSequence(
            tokens=(*self.prompt, *self.tokens),
            trained=(*[False] * ahead, *self.trained),
            behavior_log_probs=(*[0.0] * ahead, *self.log_probs),
        )
        text = self.responses[0] + "".join(
            f"\n[user] {message}\n[assistant] {response}"
            for message, response in zip(self.messages, self.responses[1:], strict=True)
        )
        return Sample(sequence, text, self.verdict, self.finished, sum(self.trained), num_turns=len(self.responses))
