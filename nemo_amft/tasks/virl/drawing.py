"""Draws the panorama of a place in a synthetic city: sky, road, facades with windows, and the landmark's sign with its name."""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from nemo_amft.tasks.virl.city import Place, StyleName
from nemo_amft.tasks.virl.headings import Geocode

Colour = tuple[int, int, int]

EYE_M, HALF_STREET_M, HORIZON_M, BUILDING_M = 2.5, 9.0, 120.0, 14.0
"""The camera's height, half a street's width, how far a street can be seen, and a building's width, in metres."""

SIGN_WIDTH, SIGN_HEIGHT, SIGN_CENTRE = 34.0, 9.0, 10.0
"""A sign's width, height and elevation above the horizon, in degrees: wide enough to be read in a view of 300 pixels."""


@dataclass(frozen=True)
class Look:
    """How a style of city looks."""

    sky: tuple[Colour, Colour]
    """At the zenith and at the horizon."""
    road: Colour
    walls: tuple[Colour, ...]
    window: Colour
    window_m: tuple[float, float]
    """Width and height of a window with its share of the wall, metres."""
    heights_m: tuple[float, float]
    """Lowest and highest building."""
    sign: tuple[Colour, Colour]
    """Board and letters."""


LOOKS: dict[str, Look] = {
    "brick": Look(
        ((96, 150, 220), (214, 232, 246)),
        (104, 104, 108),
        ((160, 82, 60), (178, 110, 78), (141, 70, 66), (200, 168, 132), (122, 84, 70)),
        (58, 62, 76),
        (3.0, 3.4),
        (9.0, 22.0),
        ((250, 248, 236), (20, 40, 30)),
    ),
    "glass": Look(
        ((48, 40, 92), (246, 170, 122)),
        (58, 60, 70),
        ((92, 124, 148), (70, 96, 128), (128, 146, 160), (54, 84, 96), (104, 108, 140)),
        (252, 226, 150),
        (1.8, 4.2),
        (35.0, 90.0),
        ((24, 22, 48), (120, 255, 226)),
    ),
}


def draw_panorama(place: Place, style: StyleName, geocode: Geocode, width: int) -> Image.Image:
    """The panorama at `geocode`, [width / 2, width] pixels, north in its first column (rotation 0: see views.py).

    The same arguments give the same pixels; `geocode` chooses heights and colours.
    """
    look = LOOKS[style]
    pixels = _facades(place, look, zlib.crc32(repr(geocode).encode()), width)
    image = Image.fromarray(pixels)
    if place.sign is not None:
        image = _with_sign(image, place.sign, place.bearing, look)
    return image


def _facades(place: Place, look: Look, seed: int, width: int) -> np.ndarray:
    height = width // 2
    azimuth = (np.arange(width) + 0.5) * 360.0 / width
    elevation = np.radians(90.0 - (np.arange(height) + 0.5) * 180.0 / height)[:, None]
    far, along, building = _walls(place.streets, azimuth, seed)
    low, high = look.heights_m
    tops = low + (high - low) * ((building * 7919) % 101) / 100.0
    colours = np.asarray(look.walls, float)[building % len(look.walls)]
    above = EYE_M + far[None, :] * np.tan(np.clip(elevation, -1.5, 1.5))
    share = np.sin(np.clip(elevation, 0, None))
    sky = np.asarray(look.sky[1], float) * (1 - share)[..., None] + np.asarray(look.sky[0], float) * share[..., None]
    ground = np.asarray(look.road, float) * np.ones((height, 1, 1))
    picture = np.where((elevation >= 0)[..., None], sky, ground) * np.ones((1, width, 1))
    wall = (far < HORIZON_M)[None, :] & (above >= 0) & (above <= tops[None, :])
    window_width, window_height = look.window_m
    across, up = (along % window_width) / window_width, (above % window_height) / window_height
    window = wall & (np.abs(across - 0.5) < 0.25)[None, :] & (np.abs(up - 0.55) < 0.25) & (above > window_height)
    # Facades fade into the horizon's colour, which shows where a street leads on.
    haze = np.clip(far / HORIZON_M, 0, 1)[None, :, None] * 0.6
    picture = np.where(wall[..., None], colours[None] * (1 - haze) + np.asarray(look.sky[1]) * haze, picture)
    picture = np.where(window[..., None], np.asarray(look.window) * (1 - haze) + np.asarray(look.sky[1]) * haze, picture)
    return np.rint(picture).astype(np.uint8)


def _walls(streets: tuple[int, ...], azimuth: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each direction: metres to the wall, metres along it, and a number of the building.

    A ray ends where it leaves all streets.
    """
    angles = np.radians(azimuth[None, :] - np.asarray(streets, float)[:, None])
    sideways = np.maximum(np.abs(np.sin(angles)), 1e-6)
    # Behind its beginning a street is only the crossing, as wide as itself; a little less, so that the street ahead decides.
    crossing = 0.99 * HALF_STREET_M / np.maximum(sideways, np.abs(np.cos(angles)))
    ends = np.where(np.cos(angles) > 0, HALF_STREET_M / sideways, crossing)
    street = ends.argmax(axis=0)
    column = np.arange(azimuth.size)
    far, angle = ends[street, column], angles[street, column]
    along = far * np.cos(angle) + BUILDING_M / 2
    number = np.floor(along / BUILDING_M).astype(np.int64)
    building = np.abs(seed + street * 73_856_093 + (np.sin(angle) > 0) * 19_349_663 + number * 83_492_791)
    return np.minimum(far, HORIZON_M), along, building


def _with_sign(image: Image.Image, name: str, bearing: int, look: Look) -> Image.Image:
    width, height = image.size
    board_width, board_height = round(SIGN_WIDTH / 360 * width), round(SIGN_HEIGHT / 180 * height)
    board = Image.new("RGB", (board_width, board_height), look.sign[0])
    pen = ImageDraw.Draw(board)
    pen.rectangle((0, 0, board_width - 1, board_height - 1), outline=look.sign[1], width=max(1, board_height // 16))
    font = _font(pen, name, board_width * 0.92, board_height * 0.8)
    pen.text((board_width / 2, board_height / 2), name, fill=look.sign[1], font=font, anchor="mm")
    left = round((bearing % 360) / 360 * width - board_width / 2)
    top = round((90 - SIGN_CENTRE) / 180 * height - board_height / 2)
    # Pasted three times, as a sign may lie across the panorama's edge.
    for shift in (-width, 0, width):
        image.paste(board, (left + shift, top))
    return image


def _font(pen: ImageDraw.ImageDraw, name: str, width: float, height: float) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's own font, as large as fits."""
    size = height
    left, top, right, bottom = pen.textbbox((0, 0), name, font=ImageFont.load_default(size))
    size *= min(1.0, width / max(right - left, 1), height / max(bottom - top, 1))
    return ImageFont.load_default(max(size, 1.0))
