"""Judges a walk. Runs in reward workers, so it imports nothing heavy, and it holds no state: see tasks/base.py."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from nemo_amft.tasks.virl.actions import Answer, AnswerError, Space, read_compact, read_full
from nemo_amft.tasks.virl.routes import Route
from nemo_amft.tasks.virl.texts import Texts
from nemo_amft.types import Verdict

Reward = Literal["original", "binary"]
Style = Literal["full", "compact"]

RIGHT, WRONG_INTERSECTION, WRONG = 1.0, -1.5, -1.0
"""Rewards of SFTvsRL's code for one response."""

ENDS = ("arrived", "failed", "cut", "open")
"""How an episode stands: at its end, out of attempts, a response cut by the length limit, or going on."""


def write_answer(route: Route, space: Space, texts: Texts, places: range) -> str:
    """What the environment needs of an episode over `places`, as an Example's answer: JSON.

    A position is [right action, whether it is an intersection, the message that leads to the next position or null].
    """
    positions = [
        [
            route.action(place, space),
            route.nodes[place].intersection,
            texts.next_view(place + 1) if place + 1 in places else None,
        ]
        for place in places
    ]
    return json.dumps({"space": space, "positions": positions}, ensure_ascii=False)


@dataclass(frozen=True)
class NavigationEnvironment:
    """An episode is one conversation, along the one right way.

    The right action leads to the next position: the next message gives it, so the conversation is the history. A wrong one
    leaves the agent where it is; the next message says what was wrong. After `attempts` wrong ones at a position, or a
    response that the length limit cut, the episode has failed. It succeeds with the right action at the last position, which
    is stop() where the episode is a whole route.
    """

    attempts: int = 2
    reward: Reward = "original"
    style: Style = "full"

    def __call__(self, answer: str, responses: Sequence[str], finished: bool) -> Verdict:
        """See tasks.base.Environment. `answer` is from write_answer.

        With reward "original" the reward is the sum over the responses so far, the return: 1 a right action, -1.5 a wrong one
        where the response is also wrong about being at an intersection, -1 otherwise, unreadable responses included. With
        "binary" it is 1 for success and 0 for all else. `detail` is JSON: see detail_of. Responses after the end are not
        looked at.
        """
        assert len(responses) > 0
        episode = json.loads(answer)
        positions, space = episode["positions"], episode["space"]
        total, right, calls, place, wrong, end, message, moved = 0.0, 0, 0, 0, 0, "open", None, False
        for response in responses:
            calls += 1
            cut = calls == len(responses) and not finished
            points, feedback = (WRONG, "") if cut else self._judge(response, positions[place], space)
            total += points
            moved = points == RIGHT
            if moved:
                right, wrong, message = right + 1, 0, positions[place][2]
                place += 1
                end = "arrived" if place == len(positions) else "open"
            else:
                wrong, message = wrong + 1, feedback
                end = "cut" if cut else "failed" if wrong == self.attempts else "open"
            if end != "open":
                break
        arrived = end == "arrived"
        return Verdict(
            reward=total if self.reward == "original" else float(arrived),
            correct=arrived,
            detail=_write_detail(right, calls, place, len(positions), end),
            follow_up=message if end == "open" else None,
            follow_up_images=int(moved and end == "open"),
            numbers={"step_accuracy": right / calls},
        )

    def _judge(self, response: str, position: list[Any], space: Space) -> tuple[float, str]:
        """Reward of one response, and what to say of a wrong one."""
        action, intersection, _ = position
        try:
            answer: Answer = (read_full if self.style == "full" else read_compact)(response, space)
        except AnswerError as error:
            return WRONG, self._say("?", f"The answer cannot be read: {error}.")
        if answer.action == action:
            return RIGHT, ""
        if answer.intersection != intersection:
            where = "are at an intersection" if intersection else "are not at an intersection"
            return WRONG_INTERSECTION, self._say("i", f"That is not the right action: you {where}.")
        if answer.action is None:
            return WRONG, self._say("a", "That is not one of the actions.")
        return WRONG, self._say("a", "That is not the right action here.")

    def _say(self, code: str, sentence: str) -> str:
        if self.style == "compact":
            return f"!{code}="
        return f"{sentence} You have not moved. Answer again, in the same form."


def detail_of(verdict: Verdict) -> dict[str, Any]:
    """What a verdict's detail says: step_accuracy = right / calls, place reached of positions, and how it ended (ENDS)."""
    return json.loads(verdict.detail)


def _write_detail(right: int, calls: int, place: int, positions: int, end: str) -> str:
    accuracy = round(right / calls, 4)
    said = {"step_accuracy": accuracy, "right": right, "calls": calls, "place": place, "positions": positions, "end": end}
    return json.dumps(said)
