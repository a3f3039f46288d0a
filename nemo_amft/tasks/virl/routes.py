"""A route as the task uses it: positions in order, each with what is seen there and the one action that is right."""

from __future__ import annotations

import re
from dataclasses import dataclass

from nemo_amft.tasks.virl.actions import STOP, Space, read_action, turn
from nemo_amft.tasks.virl.headings import SIDES, Geocode, turn_name

NOTHING = "No landmarks nearby"
"""The observation where there is nothing to be seen, as in the published data."""

_SIGHT = re.compile(rf"(?:The destination )?(.+) is on your ({'|'.join(sorted(SIDES, key=len, reverse=True))})")
_TURN_WORD = re.compile(r"turn_direction\((.*)\)")


@dataclass(frozen=True)
class Node:
    """A position. `action` is the right one in the absolute space; on turning, one also moves on to the next position."""

    geocode: Geocode
    heading: int
    """Degrees in 0..359: where one faces on arriving here, before any turn."""
    action: str
    observation: str
    """What is seen, in words, such as "Old Mill is on your right front"; NOTHING where there is nothing."""
    intersection: bool

    @property
    def landmark(self) -> str | None:
        """The name of what is seen here; None where there is nothing. An observation of another form is its own name."""
        if self.observation == NOTHING:
            return None
        found = _SIGHT.fullmatch(self.observation)
        return found[1] if found else self.observation

    @property
    def direction(self) -> str | None:
        """The compass direction that one turns to here; None where one does not turn."""
        found = _TURN_WORD.fullmatch(self.action)
        return found[1] if found else None


@dataclass(frozen=True)
class Leg:
    """A turn, and the way to the next turn or to the destination."""

    turn: str
    """In relative words."""
    direction: str
    """In compass words."""
    end: Node


@dataclass(frozen=True)
class Route:
    """`nodes` begins with a turn, and has one stop(), the last. Raises ValueError, with one line, where it has not."""

    id: str
    nodes: tuple[Node, ...]
    start: str = ""
    """The start's name, if it has one."""
    destination: str = ""

    def __post_init__(self) -> None:
        if not self.nodes:
            raise ValueError("nodes: found none, expected at least a turn and stop()")
        last = len(self.nodes) - 1
        for place, node in enumerate(self.nodes):
            if read_action(node.action, "absolute") != node.action:
                raise ValueError(f"node {place + 1}: gt_action: found {node.action!r}, expected an absolute action")
            if (node.action == STOP) != (place == last):
                where = "at the last node" if place == last else "before the last node"
                expected = STOP if place == last else "another action"
                raise ValueError(f"node {place + 1}: gt_action: found {node.action!r} {where}, expected {expected}")
        if self.nodes[0].direction is None:
            raise ValueError(f"node 1: gt_action: found {self.nodes[0].action!r}, expected a turn at the start")

    def action(self, place: int, space: Space) -> str:
        """The right action at node `place`, in `space`. A relative turn follows from the headings here and at the next node."""
        node = self.nodes[place]
        if node.direction is None or space == "absolute":
            return node.action
        return turn(turn_name(node.heading, self.nodes[place + 1].heading))

    @property
    def legs(self) -> tuple[Leg, ...]:
        """One a turn."""
        turns = [place for place, node in enumerate(self.nodes) if node.direction is not None]
        legs = []
        for start, end in zip(turns, [*turns[1:], len(self.nodes) - 1], strict=True):
            node = self.nodes[start]
            assert node.direction is not None
            legs.append(Leg(turn_name(node.heading, self.nodes[start + 1].heading), node.direction, self.nodes[end]))
        return tuple(legs)

    def leg_of(self, place: int) -> int:
        """Which leg node `place` belongs to, from 0: a node where one turns begins one."""
        return sum(node.direction is not None for node in self.nodes[: place + 1]) - 1


def instructions(route: Route) -> tuple[str, ...]:
    """Two sentences a leg: the turn, and how far to go. Made from the legs, as in the original, and not read from the file."""
    lines = []
    legs = route.legs
    for number, leg in enumerate(legs):
        lines.append(f"{'First, turn' if number == 0 else 'Turn'} {leg.turn} to face {leg.direction}.")
        seen = leg.end.observation
        if number == len(legs) - 1:
            goal = "the destination" if seen == NOTHING else f"the destination, where {_named(seen)}"
        else:
            goal = "the next intersection" if seen == NOTHING else f"the next intersection where {seen}"
        lines.append(f"Move forward until you reach {goal}.")
    return tuple(lines)


def current_instruction(route: Route, place: int) -> str:
    """The sentence that is being carried out at node `place`."""
    return instructions(route)[2 * route.leg_of(place) + (route.nodes[place].direction is None)]


def _named(seen: str) -> str:
    """What is seen at the end, without the words that the sentence has said already."""
    return seen.removeprefix("The destination ")
