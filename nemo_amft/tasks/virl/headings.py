"""Compass arithmetic. Headings are degrees clockwise from north; every comparison wraps around north."""

from __future__ import annotations

import math

COMPASS = ("north", "northeast", "east", "southeast", "south", "southwest", "west", "northwest")
TURNS = ("left", "right", "slightly left", "slightly right")
SIDES = ("front", "right front", "right", "right behind", "behind", "left behind", "left", "left front")

EARTH_RADIUS_M = 6_371_000.0

Geocode = tuple[float, float]
"""Latitude and longitude in degrees."""


def sector(angle: float) -> int:
    """Which of eight sectors of 45 degrees, centred on 0, 45, ..., 315, holds `angle`; a border belongs to the sector after."""
    return math.floor((angle % 360.0) / 45.0 + 0.5) % 8


def compass_name(heading: float) -> str:
    """The nearest of the eight compass directions."""
    return COMPASS[sector(heading)]


def side_name(heading: float, bearing: float) -> str:
    """Where something at compass `bearing` stands for someone who faces `heading`: "front", "right front", ..."""
    return SIDES[sector(bearing - heading)]


def difference(heading: float, target: float) -> float:
    """The signed angle from `heading` to `target`, at least -180 and less than 180; positive is clockwise, to the right."""
    return (target - heading + 180.0) % 360.0 - 180.0


def turn_name(heading: float, target: float) -> str:
    """The turn from `heading` to `target`, in relative words.

    Up to 45 degrees is slight, as in the original; there the difference does not wrap, so that 350 to 10 degrees is a turn to
    the left. No turn at all counts as slightly left, as there; a turn about is one to the left, where the original's word
    depends on the heading.
    """
    angle = difference(heading, target)
    if angle > 45:
        return "right"
    if angle < -45:
        return "left"
    return "slightly right" if angle > 0 else "slightly left"


def distance(start: Geocode, end: Geocode) -> float:
    """Metres between two points within a few kilometres (equirectangular approximation)."""
    north, east = _offsets(start, end)
    return math.hypot(north, east)


def bearing(start: Geocode, end: Geocode) -> float:
    """The heading from `start` to `end`, 0 to 360; the points lie within a few kilometres."""
    north, east = _offsets(start, end)
    return math.degrees(math.atan2(east, north)) % 360.0


def move(start: Geocode, heading: float, metres: float) -> Geocode:
    """The point `metres` from `start` towards `heading`."""
    north, east = metres * math.cos(math.radians(heading)), metres * math.sin(math.radians(heading))
    scale = 180.0 / (math.pi * EARTH_RADIUS_M)
    return start[0] + north * scale, start[1] + east * scale / math.cos(math.radians(start[0]))


def between(start: Geocode, end: Geocode, share: float) -> Geocode:
    """The point at `share` (0 to 1) of the way."""
    return start[0] + (end[0] - start[0]) * share, start[1] + (end[1] - start[1]) * share


def _offsets(start: Geocode, end: Geocode) -> tuple[float, float]:
    """Metres to the north and to the east."""
    scale = math.pi * EARTH_RADIUS_M / 180.0
    return (end[0] - start[0]) * scale, (end[1] - start[1]) * scale * math.cos(math.radians((start[0] + end[0]) / 2))
