"""What the agent reads and what an expert answers, in two styles: full sentences, and a short form for models of a few MB."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Literal, Protocol

from nemo_amft.tasks.virl.actions import COMPACT, FORWARD, INTERSECTION, KEYS, STOP, WORDS, Space, turn
from nemo_amft.tasks.virl.routes import Node, Route, current_instruction, instructions

Form = Literal["text", "image"]

IMAGE_SEEN = "You observe an image of 4 views"

LAYOUT = (
    "Each image is a 2x2 grid of street views, 90 degrees wide each: ahead of you (top left), to your right (top right), "
    "behind you (bottom left) and to your left (bottom right)."
)

CODES, OTHER_CODES = "bcdeghijkmnopq", "tuvwxyz0123456789"
"""Characters for landmarks in the short form, of the city that is trained in and of the others: names never seen, here too."""


class Texts(Protocol):
    """One route in words. `place` is a node's index."""

    def prompt(self, place: int) -> str:
        """The first message of a conversation that begins at `place`: instructions, what led here, and what is seen here."""
        ...

    def next_view(self, place: int) -> str:
        """The message after the right action at `place` - 1: that action, and what is seen at `place`."""
        ...

    def answer(self, place: int) -> str:
        """What an expert says at `place`."""
        ...


@dataclass(frozen=True)
class FullTexts:
    """Sentences and JSON, after the original's. In the image form the present view is an image, named but not described."""

    route: Route
    space: Space
    form: Form = "text"

    def prompt(self, place: int) -> str:
        """See Texts. Earlier observations are in words in both forms, as images of earlier positions are not shown again."""
        numbered = "\n".join(f"{number}. {line}" for number, line in enumerate(instructions(self.route), start=1))
        views = f"\n[Images]\n{LAYOUT}\n" if self.form == "image" else ""
        history = "".join(
            f"O_{past + 1}: {described(self.route.nodes[past])}\nA_{past + 1}: {self.route.action(past, self.space)}\n"
            for past in range(place)
        )
        return (
            "You find your way through a city on foot. Follow the instructions below, one action at a time.\n"
            f"\n[Instructions]\n{numbered}\n"
            f"\n[Actions]\n{action_list(self.space)}\n{views}"
            f"\n[Observations and actions so far]\n{history}{self._view(place)}\n"
            "\n[Answer]\nAnswer with one JSON object and nothing else:\n"
            '{"current observation": what you observe now, and whether it is an intersection, '
            '"current instruction": the sentence that you are carrying out, "action": one of the actions above}'
        )

    def next_view(self, place: int) -> str:
        """See Texts. Only the new lines of the history, as the conversation holds the others."""
        return f"A_{place}: {self.route.action(place - 1, self.space)}\n{self._view(place)}"

    def answer(self, place: int) -> str:
        """See Texts."""
        said = (
            described(self.route.nodes[place]),
            current_instruction(self.route, place),
            self.route.action(place, self.space),
        )
        return json.dumps(dict(zip(KEYS, said, strict=True)), ensure_ascii=False)

    def _view(self, place: int) -> str:
        node = self.route.nodes[place]
        seen = described(node) if self.form == "text" else _joined(IMAGE_SEEN, node)
        return f"O_{place + 1}: {seen}\nA_{place + 1}:"


@dataclass(frozen=True)
class CompactTexts:
    """Characters: "a:RN,kLE,m; .-N .-f k+=" is answered by "+E".

    First the action space, a(bsolute) or r(elative); then one entry a leg, the landmark that ends the leg before it (none for
    the first, "." where there is none), the turn in relative and in compass letters; then the destination's landmark. After the
    semicolon one entry a position: landmark or ".", "+" at an intersection or "-", and the action taken; "=" asks for it.
    """

    route: Route
    space: Space
    characters: str = CODES
    """What landmarks are named with."""

    def prompt(self, place: int) -> str:
        """See Texts."""
        codes = self._codes()
        entries, landmark = [], ""
        for leg in self.route.legs:
            entries.append(f"{landmark}{COMPACT[turn(leg.turn)]}{COMPACT[turn(leg.direction)]}")
            landmark = _code(leg.end, codes)
        past = "".join(
            f" {self._view(before, codes)}{COMPACT[self.route.action(before, self.space)]}" for before in range(place)
        )
        return f"{self.space[0]}:{','.join([*entries, landmark])};{past} {self._view(place, codes)}="

    def next_view(self, place: int) -> str:
        """See Texts. The action is left out: the answer before it says it as shortly."""
        return f"{self._view(place, self._codes())}="

    def answer(self, place: int) -> str:
        """See Texts."""
        return _sign(self.route.nodes[place]) + COMPACT[self.route.action(place, self.space)]

    def _view(self, place: int, codes: dict[str, str]) -> str:
        node = self.route.nodes[place]
        return _code(node, codes) + _sign(node)

    def _codes(self) -> dict[str, str]:
        """A code a landmark, drawn anew for each way, so that it says nothing but where it occurs: a character, or two."""
        names = [node.landmark for node in self.route.nodes if node.landmark is not None]
        codes = list(self.characters)
        if len(set(names)) > len(codes):
            codes = [first + second for first in codes for second in codes]
        assert len(set(names)) <= len(codes), len(names)
        salt = "/".join(names)
        codes.sort(key=lambda code: hashlib.sha256(f"{salt}/{code}".encode()).digest())
        return dict(zip(dict.fromkeys(names), codes, strict=False))


def described(node: Node) -> str:
    """What is seen at a node, in words."""
    return _joined(node.observation, node)


def action_list(space: Space) -> str:
    """The actions of `space`, one a line, with what they mean."""
    relative = " of where you face" if space == "relative" else ""
    return (
        f'"{FORWARD}": go on to the next position\n'
        f'"turn_direction(x)": turn to x{relative} and go on, where x is one of {", ".join(WORDS[space])}\n'
        f'"{STOP}": you have reached the destination'
    )


def _joined(seen: str, node: Node) -> str:
    return f"{seen}; {INTERSECTION}" if node.intersection else seen


def _code(node: Node, codes: dict[str, str]) -> str:
    return "." if node.landmark is None else codes[node.landmark]


def _sign(node: Node) -> str:
    return "+" if node.intersection else "-"
