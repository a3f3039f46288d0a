"""Street views of both styles of city in a picture, to look at: python -m nemo_amft.tasks.virl.contact_sheet FILE.png"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from nemo_amft.config.schema import DataConfig
from nemo_amft.tasks.virl.task import VirlConfig, VirlTask
from nemo_amft.types import Example

VIEW_SIZE, COLUMNS, GAP, CAPTION = 150, 5, 12, 26
"""Pixels of a view's side (an image has 2x2), images a row, and pixels between images and of a caption."""


def contact_sheet() -> Image.Image:
    """A row a style: the first positions of a route, with the right action under each image."""
    config = VirlConfig(form="image", view_size=VIEW_SIZE, num_train=1, num_validation=1, num_test=1, num_ood=1)
    task = VirlTask(config, DataConfig(), seed=1)
    routes = (task.examples("train")[0], task.evaluation_sets()["visual_ood"][0])
    rows = [list(zip(task.images(route), _actions(route), strict=True))[:COLUMNS] for route in routes]
    side = rows[0][0][0].width
    sheet = Image.new("RGB", (COLUMNS * (side + GAP) + GAP, len(rows) * (side + GAP + CAPTION) + GAP), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(16)
    for y, row in enumerate(rows):
        for x, (image, action) in enumerate(row):
            corner = GAP + x * (side + GAP), GAP + y * (side + GAP + CAPTION)
            sheet.paste(image, corner)
            pen.text((corner[0], corner[1] + side + 4), action, "black", font)
    return sheet


def _actions(route: Example) -> Sequence[str]:
    return [action for action, *_ in json.loads(route.answer)["positions"]]


if __name__ == "__main__":
    if len(sys.argv) != 2 or not sys.argv[1].endswith(".png"):
        sys.exit("usage: python -m nemo_amft.tasks.virl.contact_sheet FILE.png")
    Path(sys.argv[1]).parent.mkdir(parents=True, exist_ok=True)
    contact_sheet().save(sys.argv[1])
