"""Street views cut from a panorama: four of 90 degrees, in a 2x2 grid with a black cross.

Panoramas are equirectangular (twice as wide as high). With north at `rotation` r, the column at share u of the width looks
towards heading 360 u - r; this is how the published panoramas' metadata are to be read, after V-IRL's own projection.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from numpy.typing import NDArray

CROSS = 5
"""Pixels between the views."""

OFFSETS = (0, 90, 180, 270)
"""Headings of the views against the agent's, row by row: ahead, right; behind, left.

SFTvsRL's prompt says the same. Its code shows headings of -135, -45, 45 and 135 degrees instead: no view looks straight ahead.
"""


def view(panorama: NDArray[np.uint8], rotation: float, heading: float, size: int) -> NDArray[np.uint8]:
    """What a camera with a field of 90 degrees sees towards `heading`, degrees: [size, size, 3] from [H, W, 3]."""
    height, width, _ = panorama.shape
    focal = size / 2
    across = np.arange(size) - (size - 1) / 2
    azimuth = np.degrees(np.arctan2(across, focal))[None, :] + heading + rotation
    elevation = np.degrees(np.arctan2(-across[:, None], np.hypot(focal, across)[None, :]))
    # Pixel i of the panorama covers i to i + 1, so its centre is at i + 0.5.
    columns = azimuth / 360.0 * width - 0.5 + np.zeros((size, 1))
    rows = np.clip((90.0 - elevation) / 180.0 * height - 0.5, 0, height - 1)
    left, top = np.floor(columns).astype(int), np.floor(rows).astype(int)
    right, bottom = (left + 1) % width, np.minimum(top + 1, height - 1)
    x, y = (columns - left)[..., None], (rows - top)[..., None]
    left %= width
    upper = panorama[top, left] * (1 - x) + panorama[top, right] * x
    lower = panorama[bottom, left] * (1 - x) + panorama[bottom, right] * x
    return np.rint(upper * (1 - y) + lower * y).astype(np.uint8)


def grid(panorama: Image.Image, rotation: float, heading: float, size: int) -> Image.Image:
    """The 2x2 grid that someone who faces `heading` sees: (2 size + CROSS) pixels a side; OFFSETS says which view is where."""
    pixels = np.asarray(panorama.convert("RGB"))
    canvas = Image.new("RGB", (2 * size + CROSS, 2 * size + CROSS))
    for index, offset in enumerate(OFFSETS):
        corner = (index % 2) * (size + CROSS), (index // 2) * (size + CROSS)
        canvas.paste(Image.fromarray(view(pixels, rotation, heading + offset, size)), corner)
    return canvas
