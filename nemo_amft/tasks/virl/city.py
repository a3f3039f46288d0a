"""Synthetic cities: a grid of streets with diagonal avenues, named landmarks, and routes through it.

A city is a function of its style and a seed: the same map, names and routes everywhere. The second style has other proportions,
names and looks, and stands for a city never seen (visual OOD).
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Literal

from nemo_amft.tasks.virl.actions import FORWARD, STOP, turn
from nemo_amft.tasks.virl.headings import Geocode, compass_name, move, side_name
from nemo_amft.tasks.virl.routes import NOTHING, Node, Route, instructions

StyleName = Literal["brick", "glass"]

Crossing = tuple[int, int]
"""Column (eastwards) and row (northwards) of an intersection."""

STEPS = ((0, 1), (1, 1), (1, 0), (1, -1), (0, -1), (-1, -1), (-1, 0), (-1, 1))
"""One block towards each of the eight directions, as turned by the city's rotation: north first, clockwise."""

SIZE = 10
"""Intersections a side."""

LANDMARK_SHARE = 0.85
"""Share of the intersections with a landmark."""

SIGN_OFFSET = 30
"""Degrees from a street's direction to a landmark at its corner: never on the border of two of the eight sides."""

MAX_TRIES = 1000
"""Walks drawn for one route before the settings are given up as impossible; some one in ten succeeds."""


@dataclass(frozen=True)
class Style:
    """What one city's plan is like; how it looks is in drawing.py."""

    origin: Geocode
    rotation: int
    """Degrees by which the streets are turned clockwise; away from 22, where a street would lie between two compass names."""
    block: float
    """Metres."""
    firsts: str
    """First words of names."""
    seconds: str
    """Second words of names. With the first ones they make more names than the city has places."""


STYLES: dict[str, Style] = {
    "brick": Style(
        (40.7306, -73.9866),
        9,
        80.0,
        "Maple Harbor Lantern Juniper Copper Willow Raven Garnet Clover Marble Saffron Pioneer Cedar "
        "Magnolia Anchor Velvet Orchard Falcon Ivory Thistle Amber Quarry Beacon Linden",
        "Cafe Bakery Bookshop Pharmacy Theater Diner Library School Hotel Museum Market Florist Barber Bank "
        "Tavern Gallery Deli Laundry Grocer Tailor Chapel Cinema Studio Garage",
    ),
    "glass": Style(
        (37.7897, -122.4011),
        -12,
        110.0,
        "Nova Zenith Prism Vector Quantum Azure Pixel Orbit Helix Summit Ion Vertex "
        "Cobalt Photon Meridian Lumen Apex Titan Echo Kinetic Polar Fusion Delta Cirrus",
        "Tower Plaza Lounge Clinic Arena Terminal Gym Noodles Sushi Outlet Showroom Lab Institute "
        "Embassy Pavilion Aquarium Campus Court Exchange Forum Depot Bistro Atrium Spa",
    ),
}


@dataclass(frozen=True)
class Place:
    """What stands around a point: enough to draw it."""

    streets: tuple[int, ...]
    """Headings of the streets that leave it, degrees."""
    sign: str | None
    """The landmark's name."""
    bearing: int
    """Where the landmark is, degrees."""


class City:
    """The map of one city."""

    def __init__(self, style: StyleName, seed: int, steps_per_block: int = 1) -> None:
        """`steps_per_block` positions lie between two intersections, at least 1."""
        assert steps_per_block >= 1, steps_per_block
        self.style_name: StyleName = style
        self.style = STYLES[style]
        self.seed = seed
        self.steps_per_block = steps_per_block
        generator = random.Random(f"virl/{style}/{seed}/map")
        names = [" ".join(words) for words in itertools.product(self.style.firsts.split(), self.style.seconds.split())]
        generator.shuffle(names)
        supply = iter(names)
        crossings = list(itertools.product(range(SIZE), range(SIZE)))
        self._landmarks = {
            crossing: (next(supply), self.style.rotation + SIGN_OFFSET + 45 * generator.randrange(8))
            for crossing in crossings
            if generator.random() < LANDMARK_SHARE
        }
        # A block has one place to go to, known by the crossing from which it lies in one of the first four directions.
        self._goals = {
            (crossing, k): (next(supply), self.heading(k) + generator.choice((90, -90)))
            for crossing in crossings
            for k in range(4)
            if self.neighbour(crossing, k) is not None
        }

    def heading(self, k: int) -> int:
        """Degrees in 0..359 of direction `k`."""
        return (45 * k + self.style.rotation) % 360

    def neighbour(self, crossing: Crossing, k: int) -> Crossing | None:
        """The next intersection towards `k`, if a street leads there: the grid's, or a diagonal avenue's.

        Avenues run to the northeast in the western half of the city and to the southeast in the eastern half, so that none
        crosses another within a block.
        """
        column, row = crossing
        found = column + STEPS[k][0], row + STEPS[k][1]
        if min(found) < 0 or max(found) >= SIZE:
            return None
        west = min(column, found[0]) < SIZE // 2
        if k in (1, 5):
            return found if west and (column - row) % 3 == 0 else None
        if k in (3, 7):
            return found if not west and (column + row) % 3 == 0 else None
        return found

    def geocode(self, crossing: Crossing, k: int = 0, step: int = 0) -> Geocode:
        """The point `step` positions from `crossing` towards `k`, rounded to a centimetre so that it can serve as a key."""
        share = step / (self.steps_per_block + 1)
        column, row = crossing[0] + STEPS[k][0] * share, crossing[1] + STEPS[k][1] * share
        east = move(self.style.origin, 90 + self.style.rotation, column * self.style.block)
        latitude, longitude = move(east, self.style.rotation, row * self.style.block)
        return round(latitude, 7), round(longitude, 7)

    def goal(self, crossing: Crossing, k: int) -> tuple[str, int]:
        """Name and bearing of what stands on the block from `crossing` towards `k`."""
        if k < 4:
            return self._goals[crossing, k]
        other = self.neighbour(crossing, k)
        assert other is not None
        return self._goals[other, k - 4]

    def landmark(self, crossing: Crossing) -> tuple[str, int] | None:
        """Name and bearing of an intersection's landmark, if it has one."""
        return self._landmarks.get(crossing)

    def route(
        self, name: str, generator: random.Random, legs: int, blocks: tuple[int, int]
    ) -> tuple[Route, list[Place]] | None:
        """A random walk of `legs` turns, with fewest and most `blocks` between them, and what stands at its nodes.

        None where it ran into itself or the edge. An intersection without a landmark is a turn only if it is the first one
        after the turn before; otherwise the instructions would not tell which is meant.
        """
        walk = _Walk(self, generator)
        for leg in range(legs):
            last = leg == legs - 1
            if not walk.go(generator.randint(*blocks), last):
                return None
        return Route(name, tuple(walk.nodes), start="", destination=walk.destination), walk.places


class _Walk:
    """A route while it is drawn."""

    def __init__(self, city: City, generator: random.Random) -> None:
        self.city, self.generator = city, generator
        self.crossing: Crossing = (generator.randrange(SIZE), generator.randrange(SIZE))
        self.direction: int | None = None
        self.seen = {self.crossing}
        self.nodes: list[Node] = []
        self.places: list[Place] = []
        self.destination = ""

    def go(self, blocks: int, last: bool) -> bool:
        """Turn, and walk `blocks` blocks; half of the last block where the leg is the last. False where there is no way."""
        before = self.direction
        reverse = None if before is None else (before + 4) % 8
        open_ways = [k for k in range(8) if k not in (before, reverse) and self.city.neighbour(self.crossing, k) is not None]
        if not open_ways:
            return False
        k = self.direction = self.generator.choice(open_ways)
        turned = turn(compass_name(self.city.heading(k)))
        if before is None:
            # Starts on the block's last position, facing any other way.
            facing = self.city.heading((k + self.generator.randrange(1, 8)) % 8)
            self._on_block(self.city.steps_per_block, facing, turned)
        else:
            self._at_crossing(before, turned)
        for block in range(blocks):
            if block > 0:
                self._at_crossing(k, FORWARD)
            final = last and block == blocks - 1
            following = self.city.neighbour(self.crossing, k)
            if following is None or (following in self.seen and not final):
                return False
            if before is not None or block > 0:
                steps = self.city.steps_per_block
                for step in range(1, steps + 1):
                    self._on_block(step, self.city.heading(k), STOP if final and step == steps else FORWARD)
            if not final:
                self.crossing = following
                self.seen.add(following)
        return last or blocks == 1 or self.city.landmark(self.crossing) is not None

    def _at_crossing(self, arrived: int, action: str) -> None:
        """Add the intersection that has been reached walking towards `arrived`."""
        city, heading = self.city, self.city.heading(arrived)
        name, bearing = city.landmark(self.crossing) or (None, 0)
        streets = tuple(city.heading(k) for k in range(8) if city.neighbour(self.crossing, k) is not None)
        seen = NOTHING if name is None else f"{name} is on your {side_name(heading, bearing)}"
        self.nodes.append(Node(city.geocode(self.crossing), heading, action, seen, intersection=True))
        self.places.append(Place(streets, name, bearing))

    def _on_block(self, step: int, heading: int, action: str) -> None:
        """Add a position between two intersections. Views show what stands there, words name it only as a destination."""
        assert self.direction is not None
        name, bearing = self.city.goal(self.crossing, self.direction)
        seen = f"The destination {name} is on your {side_name(heading, bearing)}" if action == STOP else NOTHING
        streets = (self.city.heading(self.direction), self.city.heading(self.direction + 4))
        geocode = self.city.geocode(self.crossing, self.direction, step)
        self.nodes.append(Node(geocode, heading, action, seen, intersection=False))
        self.places.append(Place(streets, name, bearing))
        self.destination = name


def draw_routes(
    city: City,
    count: int,
    legs: tuple[int, int],
    blocks: tuple[int, int],
    name: str,
    key: Callable[[Route], Hashable] = instructions,
) -> tuple[list[Route], dict[Geocode, Place]]:
    """`count` routes, ids "name/0", ..., and what stands at all their points. No two have the same `key`.

    Raises ValueError, with one line, where the city has too few.
    """
    generator = random.Random(f"virl/{city.style_name}/{city.seed}/routes")
    routes: list[Route] = []
    places: dict[Geocode, Place] = {}
    known: set[Hashable] = set()
    tries = 0
    while len(routes) < count:
        tries += 1
        if tries > MAX_TRIES * (len(routes) + 1):
            raise ValueError(f"found {len(routes)} different routes in the city, expected {count}")
        drawn = city.route(f"{name}/{len(routes)}", generator, generator.randint(*legs), blocks)
        if drawn is None or key(drawn[0]) in known:
            continue
        route, around = drawn
        routes.append(route)
        known.add(key(route))
        places.update((node.geocode, place) for node, place in zip(route.nodes, around, strict=True))
    return routes, places
