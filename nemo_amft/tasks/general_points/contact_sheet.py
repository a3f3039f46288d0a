"""All 52 cards and one hand in a picture, to look at: python -m nemo_amft.tasks.general_points.contact_sheet FILE.png"""

from __future__ import annotations

import sys
from pathlib import Path

from PIL import Image

from nemo_amft.tasks.general_points.cards import LABELS, SUITS, Card
from nemo_amft.tasks.general_points.image import BACKGROUND, CARD_HEIGHT, CARD_WIDTH, SIDE, draw_card, draw_hand

GAP = 12
"""Pixels between cards."""


def contact_sheet() -> Image.Image:
    """A row a suit, a column a rank; the hand stands below, at half its size."""
    suits = [suit for pair in SUITS.values() for suit in pair]
    step_x, step_y = CARD_WIDTH + GAP, CARD_HEIGHT + GAP
    sheet = Image.new("RGB", (len(LABELS) * step_x, len(suits) * step_y + SIDE // 2), BACKGROUND)
    for row, suit in enumerate(suits):
        for column in range(len(LABELS)):
            sheet.paste(draw_card(Card(column + 1, suit)), (column * step_x + GAP // 2, row * step_y + GAP // 2))
    hand = draw_hand([Card(3, "spades"), Card(10, "clubs"), Card(12, "hearts"), Card(1, "diamonds")])
    sheet.paste(hand.resize((SIDE // 2, SIDE // 2)), (0, len(suits) * step_y))
    return sheet


if __name__ == "__main__":
    if len(sys.argv) != 2 or not sys.argv[1].endswith(".png"):
        sys.exit("usage: python -m nemo_amft.tasks.general_points.contact_sheet FILE.png")
    Path(sys.argv[1]).parent.mkdir(parents=True, exist_ok=True)
    contact_sheet().save(sys.argv[1])
