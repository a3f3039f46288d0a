"""The picture of a hand: its measures, and that cards can be told apart."""

from __future__ import annotations

import itertools

import pytest
from PIL import Image, ImageChops

from nemo_amft.config.schema import DataConfig
from nemo_amft.tasks.general_points import GeneralPointsConfig, GeneralPointsTask
from nemo_amft.tasks.general_points.cards import LABELS, SUITS, Card
from nemo_amft.tasks.general_points.contact_sheet import contact_sheet
from nemo_amft.tasks.general_points.image import draw_card, draw_hand

FELT = (0x35, 0x65, 0x4D)
HAND = (Card(1, "spades"), Card(10, "clubs"), Card(12, "hearts"), Card(7, "diamonds"))
RANK_CORNER = (8, 8, 62, 58)
ALL_SUITS = [suit for suits in SUITS.values() for suit in suits]


def different_pixels(one: Image.Image, other: Image.Image) -> int:
    """Pixels whose brightness differs by more than a quarter of the range: what an eye would see."""
    return sum(ImageChops.difference(one.convert("L"), other.convert("L")).histogram()[64:])


def is_red(pixel: tuple[int, int, int]) -> bool:
    return pixel[0] > pixel[1] + 60 and pixel[0] > pixel[2] + 60


def pixels(image: Image.Image) -> set[tuple[int, int, int]]:
    return {colour for _, colour in image.getcolors(image.width * image.height)}


def test_a_hand_is_four_cards_of_270_by_378_in_a_row_on_the_felt():
    image = draw_hand(HAND)
    assert (image.size, image.mode) == ((1200, 1200), "RGB")
    # Everything that is not felt is within four boxes of the cards' size, evenly spaced, and fills them.
    mask = ImageChops.difference(image, Image.new("RGB", image.size, FELT)).convert("L").point(lambda level: 255 * (level > 8))
    assert mask.getbbox() == (24, 411, 1176, 789)
    columns = [mask.crop((x, 600, x + 1, 601)).getbbox() is not None for x in range(1200)]
    runs = [
        (x, len(list(run))) for (card, x), run in itertools.groupby(enumerate_runs(columns), key=lambda item: item[:2]) if card
    ]
    assert runs == [(24, 270), (318, 270), (612, 270), (906, 270)]


def enumerate_runs(flags):
    """(flag, start of its run) for every flag."""
    start = 0
    for index, flag in enumerate(flags):
        if index and flag != flags[index - 1]:
            start = index
        yield flag, start


def test_the_cards_stand_in_their_order():
    image = draw_hand(HAND)
    for index, card in enumerate(HAND):
        x = 24 + index * 294
        assert image.crop((x, 411, x + 270, 789)).tobytes() == draw_card(card).tobytes()


def test_the_picture_is_the_same_every_time():
    before = draw_hand(HAND).tobytes()
    draw_card.cache_clear()
    assert draw_hand(HAND).tobytes() == before


@pytest.mark.parametrize("suit", ALL_SUITS)
def test_ranks_can_be_told_apart_by_their_corner_alone(suit):
    corners = [draw_card(Card(rank, suit)).crop(RANK_CORNER) for rank in range(1, 14)]
    for (i, one), (j, other) in itertools.combinations(enumerate(corners), 2):
        assert different_pixels(one, other) > 60, (LABELS[i], LABELS[j])


@pytest.mark.parametrize("rank", [1, 4, 10, 13])
def test_suits_of_one_colour_can_be_told_apart(rank):
    for one, other in SUITS.values():
        assert different_pixels(draw_card(Card(rank, one)), draw_card(Card(rank, other))) > 250


@pytest.mark.parametrize("rank", range(1, 14))
def test_red_suits_are_red_and_black_ones_have_no_colour(rank):
    for suit in SUITS["red"]:
        inner = pixels(draw_card(Card(rank, suit)).crop((20, 20, 250, 358)))
        assert any(is_red(pixel) for pixel in inner)
        assert min(max(pixel) for pixel in inner) > 100, "there is black on a red card"
    for suit in SUITS["black"]:
        inner = pixels(draw_card(Card(rank, suit)).crop((20, 20, 250, 358)))
        assert all(max(pixel) - min(pixel) < 10 for pixel in inner)


@pytest.mark.parametrize("rank", range(1, 14))
def test_the_opposite_corner_shows_the_rank_as_well(rank):
    card = draw_card(Card(rank, "hearts"))
    left, top, right, bottom = RANK_CORNER
    opposite = card.crop((270 - right, 378 - bottom, 270 - left, 378 - top)).rotate(180)
    assert different_pixels(card.crop(RANK_CORNER), opposite) == 0
    assert len(pixels(opposite)) > 1


@pytest.mark.parametrize("rank", range(1, 11))
def test_a_number_card_has_as_many_pips_as_it_says(rank):
    card = draw_card(Card(rank, "diamonds")).crop((62, 20, 208, 358)).convert("L").point(lambda level: 255 * (level < 160))
    assert count_shapes(card) == rank


def count_shapes(mask: Image.Image) -> int:
    """Connected areas of 255."""
    from PIL import ImageDraw

    count = 0
    while (place := mask.tobytes().find(b"\xff")) >= 0:
        ImageDraw.floodfill(mask, (place % mask.width, place // mask.width), 0)
        count += 1
    return count


def test_the_task_draws_the_cards_that_its_examples_name():
    task = GeneralPointsTask(GeneralPointsConfig(form="image", num_train=3, num_validation=1, num_test=2), DataConfig(), 1)
    for example in (*task.examples("train"), *task.evaluation_sets()["visual_ood"]):
        (image,) = task.images(example)
        cards = [Card(LABELS.index(label) + 1, suit) for label, suit in example.metadata["cards"]]
        assert image.tobytes() == draw_hand(cards).tobytes()
    text = GeneralPointsTask(GeneralPointsConfig(num_train=1, num_validation=1, num_test=1), DataConfig(), 1)
    assert text.images(text.examples("train")[0]) == []


def test_the_contact_sheet_shows_every_card():
    assert contact_sheet().size == (13 * 282, 4 * 390 + 600)
