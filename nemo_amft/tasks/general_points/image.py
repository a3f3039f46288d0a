"""Draws a hand: four cards in a row on green felt. Suits are drawn as shapes, as few fonts have them."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from nemo_amft.tasks.general_points.cards import FACE_RANKS, SUITS, Card

SIDE = 1200
"""Width and height of the image."""

BACKGROUND = (0x35, 0x65, 0x4D)

CARD_WIDTH, CARD_HEIGHT = 270, 378

INK = {"black": (20, 20, 20), "red": (200, 16, 32)}

SCALE = 3
"""Cards are drawn this much larger and then reduced, which smooths their edges."""

COLOURS = {suit: colour for colour, suits in SUITS.items() for suit in suits}

Point = tuple[float, float]

# Pips of ranks 1 to 10, as on common cards: how many on either side, and the heights of those in the middle, 0 at the top.
_SIDES = {0: (), 2: (0.0, 1.0), 3: (0.0, 0.5, 1.0), 4: (0.0, 1 / 3, 2 / 3, 1.0)}
_LAYOUT: dict[int, tuple[int, tuple[float, ...]]] = {
    1: (0, (0.5,)),
    2: (0, (0.0, 1.0)),
    3: (0, (0.0, 0.5, 1.0)),
    4: (2, ()),
    5: (2, (0.5,)),
    6: (3, ()),
    7: (3, (0.25,)),
    8: (3, (0.25, 0.75)),
    9: (4, (0.5,)),
    10: (4, (1 / 6, 5 / 6)),
}


def draw_hand(cards: Sequence[Card]) -> Image.Image:
    """RGB image of SIDE x SIDE pixels with one to four `cards` from left to right, evenly spaced in the middle."""
    assert 1 <= len(cards) <= 4, cards
    image = Image.new("RGB", (SIDE, SIDE), BACKGROUND)
    gap = (SIDE - len(cards) * CARD_WIDTH) // (len(cards) + 1)
    for index, card in enumerate(cards):
        image.paste(draw_card(card), (gap + index * (CARD_WIDTH + gap), (SIDE - CARD_HEIGHT) // 2))
    return image


@functools.lru_cache(maxsize=52)
def draw_card(card: Card) -> Image.Image:
    """RGB image of CARD_WIDTH x CARD_HEIGHT pixels, its corners in the colour of the felt. Not to be drawn on: it is cached."""
    width, height = CARD_WIDTH * SCALE, CARD_HEIGHT * SCALE
    ink = INK[COLOURS[card.suit]]
    image = Image.new("RGB", (width, height), BACKGROUND)
    draw = ImageDraw.Draw(image)
    draw.rounded_rectangle(
        (0, 0, width - 1, height - 1), radius=18 * SCALE, fill="white", outline=(90, 90, 90), width=2 * SCALE
    )
    draw.text((34 * SCALE, 34 * SCALE), card.label, fill=ink, font=_font(46 * SCALE), anchor="mm")
    _suit(draw, card.suit, (34 * SCALE, 78 * SCALE), 32 * SCALE, ink)
    if card.rank in FACE_RANKS:
        draw.rectangle((66 * SCALE, 60 * SCALE, width - 66 * SCALE, height - 60 * SCALE), outline=ink, width=3 * SCALE)
        _suit(draw, card.suit, (width / 2, 106 * SCALE), 60 * SCALE, ink)
    # The lower half is the upper one, turned, so that a hand reads the same from either end of the table.
    image.paste(image.rotate(180).crop((0, height // 2, width, height)), (0, height // 2))
    draw = ImageDraw.Draw(image)
    if card.rank in FACE_RANKS:
        draw.text((width / 2, height / 2), card.label, fill=ink, font=_font(92 * SCALE), anchor="mm")
    for x, y in _pips(card.rank):
        place = (98 + (CARD_WIDTH - 196) * x) * SCALE, (66 + (CARD_HEIGHT - 132) * y) * SCALE
        _suit(draw, card.suit, place, (90 if card.rank == 1 else 46) * SCALE, ink, turned=y > 0.5)
    return image.resize((CARD_WIDTH, CARD_HEIGHT), Image.Resampling.LANCZOS)


def _pips(rank: int) -> list[Point]:
    """Where a card of `rank` has its pips: x and y from 0 to 1."""
    side, middle = _LAYOUT.get(rank, (0, ()))
    return [(x, y) for x in (0.0, 1.0) for y in _SIDES[side]] + [(0.5, y) for y in middle]


@functools.lru_cache(maxsize=8)
def _font(size: int) -> ImageFont.FreeTypeFont:
    # The one that Pillow brings along: the same on every machine.
    return ImageFont.load_default(size)


def _suit(
    draw: ImageDraw.ImageDraw, suit: str, centre: Point, size: float, ink: tuple[int, int, int], turned: bool = False
) -> None:
    """The suit's shape, `size` high, around `centre`; `turned` upside down."""
    x, y = centre
    r = -size / 2 if turned else size / 2

    def at(points: Sequence[Point]) -> list[Point]:
        return [(x + r * u, y + r * v) for u, v in points]

    def disc(u: float, v: float, radius: float) -> None:
        (a, b), reach = *at([(u, v)]), abs(r) * radius
        draw.ellipse((a - reach, b - reach, a + reach, b + reach), fill=ink)

    stem = [(0.0, 0.1), (0.12, 0.6), (0.4, 1.0), (-0.4, 1.0), (-0.12, 0.6)]
    if suit == "diamonds":
        draw.polygon(at([(0, -1), (0.72, 0), (0, 1), (-0.72, 0)]), fill=ink)
    elif suit == "hearts":
        draw.polygon(at(_heart()), fill=ink)
    elif suit == "spades":
        draw.polygon(at([(u, -0.82 * v - 0.18) for u, v in _heart()]), fill=ink)
        draw.polygon(at(stem), fill=ink)
    else:
        for u, v in ((0.0, -0.55), (-0.5, 0.2), (0.5, 0.2)):
            disc(u, v, 0.44)
        draw.polygon(at(stem), fill=ink)


@functools.cache
def _heart() -> tuple[Point, ...]:
    """Outline within -1..1, the point downwards: x = 16 sin^3 t, y = 13 cos t - 5 cos 2t - 2 cos 3t - cos 4t, scaled."""
    turns = [2 * math.pi * i / 120 for i in range(120)]
    curve = [
        (16 * math.sin(t) ** 3, -(13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)))
        for t in turns
    ]
    top, bottom = min(y for _, y in curve), max(y for _, y in curve)
    return tuple((x / 17, 2 * (y - top) / (bottom - top) - 1) for x, y in curve)
