"""V-IRL's published layout, street views and images."""

import itertools
import json
import os
import pickle
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from nemo_amft.config.schema import DataConfig
from nemo_amft.tasks.virl import VirlConfig, VirlTask, export, load_routes
from nemo_amft.tasks.virl.city import City, draw_routes
from nemo_amft.tasks.virl.contact_sheet import CAPTION, COLUMNS, GAP, contact_sheet
from nemo_amft.tasks.virl.drawing import draw_panorama
from nemo_amft.tasks.virl.headings import move
from nemo_amft.tasks.virl.published import StreetViews
from nemo_amft.tasks.virl.routes import NOTHING
from nemo_amft.tasks.virl.views import CROSS, grid, view
from nemo_amft.types import UserError

START = (40.0, -74.0)
FIRST = move(START, 90, 60)
SECOND = move(FIRST, 0, 12)
END = move(SECOND, 90, 60)

MILESTONES = """
{
"intersection_idx": "1",
"landmarks": "Joe's "Best" Pizza: Soho is on your right front",
"distance": "60 meters",
"human_heading": "0",
"to_next_intersection_heading": "89 (east)",
}

{
"intersection_idx": "2",
"landmarks": "No landmark nearby",
"distance": "12 meters",
"human_heading": "89",
"to_next_intersection_heading": "359 (north)",
}

{
"intersection_idx": "3",
"landmarks": "The destination The Inn is on your left",
"distance": "60 meters",
"human_heading": "359",
"to_next_intersection_heading": "90 (east)",
}
"""


def record(**changes):
    """One route as V-IRL's code writes it."""
    return {
        "dest_place": {"name": "The Inn", "geocode": list(END), "place_id": "x", "n_reviews": 3},
        "start_place": {"name": "Park", "geocode": [40.0001, -74.0], "relocated_geocode": list(START)},
        "route_results": {
            "geocode_list": [list(FIRST), list(SECOND), list(END)],
            "landmark_list": [{"name": "Joe's"}, None],
            "distance_list": [60, 12, 60],
        },
        "init_heading": 180,
        "instruction": "First, head east past the pizzeria ...",
        "milestone_info": MILESTONES,
        **changes,
    }


def write(folder, value):
    (folder / "route_infos.json").write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")
    return folder


def test_a_route_in_the_published_layout_becomes_positions(tmp_path):
    (route,) = load_routes(write(tmp_path, [[record()], 7]), positions_between=2)
    assert (route.start, route.destination) == ("Park", "The Inn")
    pizza = """Joe's "Best" Pizza: Soho is on your right front"""
    between = ("forward()", NOTHING, False)
    # The second leg is too short for positions between: they would be within 8 m of its ends.
    assert [(node.heading, node.action, node.observation, node.intersection) for node in route.nodes] == [
        (180, "turn_direction(east)", NOTHING, False),
        (89, *between),
        (89, *between),
        (89, "turn_direction(north)", pizza, True),
        (359, "turn_direction(east)", NOTHING, True),
        (90, *between),
        (90, *between),
        (90, "stop()", "The destination The Inn is on your left", False),
    ]
    assert [route.action(place, "relative") for place in (0, 3, 4)] == [
        f"turn_direction({w})" for w in ("left", "left", "right")
    ]
    assert route.nodes[3].geocode == FIRST
    assert route.nodes[1].geocode == pytest.approx(move(START, 90, 20), abs=1e-7)
    assert route.nodes[3].landmark == """Joe's "Best" Pizza: Soho"""


def test_a_node_list_takes_the_place_of_milestones(tmp_path):
    nodes = [
        {"geocode": START, "heading": -90, "gt_action": "turn_direction(north)", "observation": "", "intersection": False},
        {
            "geocode": FIRST,
            "heading": 0,
            "gt_action": "stop()",
            "observation": "X is on your left",
            "intersection": True,
            "z": 1,
        },
    ]
    value = [[record(route_results={"node_list": nodes}, milestone_info=None)], 1]
    (route,) = load_routes(write(tmp_path, value))
    assert [(node.heading, node.observation) for node in route.nodes] == [(270, NOTHING), (0, "X is on your left")]
    assert route.action(0, "relative") == "turn_direction(right)"


@pytest.mark.parametrize("style", ["brick", "glass"])
def test_a_synthetic_city_is_read_back_as_it_was_written(style, tmp_path):
    routes, _ = draw_routes(City(style, 3, 2), 30, (2, 4), (1, 3), "city")
    export(tmp_path / "city", routes)
    assert load_routes(tmp_path / "city") == routes


def test_milestones_of_a_synthetic_city_give_the_same_turns_as_its_positions(tmp_path):
    routes, _ = draw_routes(City("brick", 3), 30, (2, 4), (1, 3), "city")
    export(tmp_path, routes)
    listed, count = json.loads((tmp_path / "route_infos.json").read_text())
    for item in listed:
        del item["route_results"]["node_list"]
    read = load_routes(write(tmp_path, [listed, count]), positions_between=1)
    for ours, theirs in zip(routes, read, strict=True):
        turns = [node for node in ours.nodes if node.direction is not None or node.action == "stop()"]
        assert [node for node in theirs.nodes if node.direction is not None or node.action == "stop()"] == turns
        assert [leg.turn for leg in theirs.legs] == [leg.turn for leg in ours.legs]


def without(key):
    return {name: value for name, value in record().items() if name != key}


def node(**changes):
    plain = {"geocode": START, "heading": 0, "gt_action": "stop()", "observation": "", "intersection": False}
    return {**plain, **changes}


def listed(*nodes):
    return [[record(route_results={"node_list": list(nodes)})], 1]


TURN = node(gt_action="turn_direction(north)")
ROUTE = "{file}, route 1: "


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("", "{file}: found malformed JSON (Expecting value at line 1, column 1), expected [routes, count]"),
        ("[[1,\n2", "{file}: found malformed JSON (Expecting ',' delimiter at line 2, column 2), expected [routes, count]"),
        ({"routes": []}, "{file}: found {{'routes': []}}, expected [routes, count]"),
        ([[record()]], None),
        ([{}, 1], "{file}: found [{{}}, 1], expected [routes, count]"),
        ([[record()], "1"], "{file}: count: found '1', expected a number"),
        ([[record()], True], "{file}: count: found true, expected a number"),
        ([[], 0], "{file}: found no routes, expected at least one"),
        ([["x"], 1], ROUTE + "found 'x', expected an object"),
        ([[without("dest_place")], 1], ROUTE + "dest_place: found null, expected an object"),
        ([[record(dest_place={"name": 5})], 1], ROUTE + "dest_place.name: found 5, expected a text"),
        ([[without("start_place")], 1], ROUTE + "start_place: found null, expected an object"),
        (
            [[record(start_place={"relocated_geocode": [91, 0]})], 1],
            ROUTE + "start_place.relocated_geocode: found [91, 0], expected [latitude, longitude] in degrees",
        ),
        ([[record(start_place={})], 1], ROUTE + "start_place.geocode: found null, expected [latitude, longitude] in degrees"),
        ([[record(route_results=[])], 1], ROUTE + "route_results: found [], expected an object"),
        (
            [[record(route_results={"geocode_list": []})], 1],
            ROUTE + "route_results.geocode_list: found [], expected a list of [latitude, longitude]",
        ),
        (
            [[record(route_results={"geocode_list": [START, [1, "2"], END]})], 1],
            ROUTE + "route_results.geocode_list[1]: found [1, '2'], expected [latitude, longitude] in degrees",
        ),
        (
            '[[{"dest_place": {}, "start_place": {"geocode": [NaN, 1]}, "route_results": {}}], 1]',
            ROUTE + "start_place.geocode: found [nan, 1], expected [latitude, longitude] in degrees",
        ),
        (
            [[record(route_results={"geocode_list": [FIRST]})], 1],
            ROUTE + "milestone_info: found 3 milestones, expected 1, as in route_results.geocode_list",
        ),
        ([[record(milestone_info=None)], 1], ROUTE + "milestone_info: found null, expected a text"),
        (
            [[record(milestone_info="go")], 1],
            ROUTE + "milestone_info: found 0 milestones, expected 3, as in route_results.geocode_list",
        ),
        (
            [[record(milestone_info=MILESTONES.replace("359 (north)", "north"))], 1],
            ROUTE + "milestone_info, milestone 2: to_next_intersection_heading: found 'north', "
            "expected degrees and a direction, such as '177 (south)'",
        ),
        (
            [[record(milestone_info=MILESTONES.replace("(east)", "(left)"))], 1],
            ROUTE + "milestone_info, milestone 1: to_next_intersection_heading: found '89 (left)', "
            "expected degrees and a direction, such as '177 (south)'",
        ),
        ([[record(init_heading="north")], 1], ROUTE + "init_heading: found 'north', expected degrees"),
        (
            '[[{"dest_place": {}, "start_place": {"geocode": [1' + "0" * 400 + ', 1]}, "route_results": {}}], 1]',
            ROUTE + "start_place.geocode: found [1" + "0" * 55 + "..., expected [latitude, longitude] in degrees",
        ),
        ([[record(route_results={"node_list": {}})], 1], ROUTE + "route_results.node_list: found {{}}, expected a list"),
        (listed(5), ROUTE + "node 1: found 5, expected an object"),
        (listed(), ROUTE + "nodes: found none, expected at least a turn and stop()"),
        (listed(TURN, node(gt_action=None)), ROUTE + "node 2: gt_action: found null, expected a text"),
        (listed(TURN, node(observation=5)), ROUTE + "node 2: observation: found 5, expected a text"),
        (listed(TURN, node(intersection=1)), ROUTE + "node 2: intersection: found 1, expected true or false"),
        (listed(TURN, node(heading=None)), ROUTE + "node 2: heading: found null, expected degrees"),
        (listed(TURN, node(geocode=[1])), ROUTE + "node 2: geocode: found [1], expected [latitude, longitude] in degrees"),
        (listed(node(gt_action="fly()"), node()), ROUTE + "node 1: gt_action: found 'fly()', expected an absolute action"),
        (
            listed(node(gt_action="turn_direction(left)"), node()),
            ROUTE + "node 1: gt_action: found 'turn_direction(left)', expected an absolute action",
        ),
        (listed(TURN, TURN), ROUTE + "node 2: gt_action: found 'turn_direction(north)' at the last node, expected stop()"),
        (
            listed(TURN, node(), node()),
            ROUTE + "node 2: gt_action: found 'stop()' before the last node, expected another action",
        ),
        (
            listed(node(gt_action="forward()"), node()),
            ROUTE + "node 1: gt_action: found 'forward()', expected a turn at the start",
        ),
    ],
)
def test_what_cannot_be_used_is_refused_in_one_line_that_names_it(value, message, tmp_path):
    file = write(tmp_path, value) / "route_infos.json"
    with pytest.raises(UserError) as caught:
        load_routes(tmp_path)
    assert "\n" not in str(caught.value)
    if message is None:
        assert str(caught.value).startswith(f"{file}: found [[{{'dest_place'")
        assert str(caught.value).endswith("..., expected [routes, count]")
    else:
        assert str(caught.value) == message.format(file=file)


def test_missing_and_unreadable_files_are_named(tmp_path):
    file = tmp_path / "route_infos.json"
    with pytest.raises(UserError, match=f"^{re.escape(str(file))}: found no such file, expected "):
        load_routes(tmp_path)
    file.write_bytes(b'[["\xff"], 1]')
    with pytest.raises(UserError, match=f"^{re.escape(str(file))}: found byte 0xff at 3, expected UTF-8$"):
        load_routes(tmp_path)
    for hostile in ("[" * 100_000, "[[" + "1" * 5000 + "], 1]"):
        file.write_text(hostile)
        with pytest.raises(UserError, match=f"^{re.escape(str(file))}: found JSON that cannot be used "):
            load_routes(tmp_path)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=10,
)


@given(st.sampled_from(sorted(record())), JSON)
@settings(max_examples=200)
def test_any_value_of_any_key_loads_or_is_refused_in_one_line(tmp_path_factory, key, value):
    folder = write(tmp_path_factory.getbasetemp(), [[record(**{key: value})], 1])
    refusal = ""
    try:
        load_routes(folder)
    except UserError as error:
        refusal = str(error)
    assert "\n" not in refusal


# ---- street views


def coloured_panorama(width: int, rotation: float = 0.0) -> Image.Image:
    """Whose red is the heading of a column in degrees / 2, and whose green the elevation of a row in degrees + 90."""
    heading = ((np.arange(width) + 0.5) * 360 / width - rotation) % 360
    elevation = 90 - (np.arange(width // 2) + 0.5) * 360 / width
    pixels = np.zeros((width // 2, width, 3))
    pixels[..., 0] = heading[None, :] / 2
    pixels[..., 1] = elevation[:, None] + 90
    return Image.fromarray(np.rint(pixels).astype(np.uint8))


@pytest.mark.parametrize("rotation", [0.0, 77.0])
def test_a_view_shows_the_headings_and_elevations_of_a_camera(rotation):
    pixels = view(np.asarray(coloured_panorama(1440, rotation)), rotation, 100, 201).astype(int)
    assert pixels[100, 100].tolist()[:2] == pytest.approx([50, 90], abs=1)
    assert pixels[100, 0, 0] * 2 == pytest.approx(55, abs=2)  # 45 degrees to the left
    assert pixels[100, 200, 0] * 2 == pytest.approx(145, abs=2)
    assert pixels[0, 100, 1] - 90 == pytest.approx(45, abs=1)
    # In the corner of a cube's face the elevation is arctan(1 / sqrt 2).
    assert pixels[0, 0, 1] - 90 == pytest.approx(35.26, abs=1)


@pytest.mark.parametrize("heading", [0, 90, 350])
def test_the_grid_has_the_views_ahead_right_behind_and_left_with_a_black_cross(heading):
    size = 60
    pixels = np.asarray(grid(coloured_panorama(720), 0.0, heading, size)).astype(int)
    assert pixels.shape == (2 * size + CROSS, 2 * size + CROSS, 3) == (125, 125, 3)
    assert not pixels[size : size + 5].any()
    assert not pixels[:, size : size + 5].any()
    for (row, column), offset in {(0, 0): 0, (0, 1): 90, (1, 0): 180, (1, 1): 270}.items():
        # A quarter of the way into each view, clear of the seam at north: atan(1/2) to the right.
        centre = pixels[row * (size + CROSS) + size // 2, column * (size + CROSS) + 3 * size // 4]
        expected = (heading + offset + 26.6) % 360
        assert centre[0] * 2 == pytest.approx(expected, abs=2.5), offset
    around = np.delete(np.delete(pixels, range(size, size + 5), 0), range(size, size + 5), 1)
    assert around[..., 1].all()


def image_task(**config) -> VirlTask:
    settings = {"form": "image", "view_size": 64, "num_train": 4, "num_validation": 1, "num_test": 1, "num_ood": 2, **config}
    return VirlTask(VirlConfig(**settings), DataConfig(), 1)


def test_every_position_has_an_image():
    task = image_task()
    example = task.examples("train")[0]
    images = task.images(example)
    assert len(images) == len(json.loads(example.answer)["positions"])
    assert {(image.mode, image.size) for image in images} == {("RGB", (133, 133))}
    assert [image.tobytes() for image in task.images(example)] == [image.tobytes() for image in images]
    assert all(image.tobytes() != following.tobytes() for image, following in itertools.pairwise(images))


def colours(image: Image.Image) -> np.ndarray:
    """Shares of 512 kinds of colour."""
    reds, greens, blues = (np.asarray(image) // 32).reshape(-1, 3).astype(int).T
    return np.bincount(reds * 64 + greens * 8 + blues, minlength=512) / reds.size


def test_the_second_style_of_city_looks_different():
    task = image_task()
    ours, theirs = (
        [colours(image) for example in examples for image in task.images(example)]
        for examples in (task.examples("train"), task.evaluation_sets()["visual_ood"])
    )
    within = [np.minimum(one, other).sum() for group in (ours, theirs) for one in group for other in group]
    across = [np.minimum(one, other).sum() for one in ours for other in theirs]
    assert min(within) > 0.6
    assert max(across) < 0.3


def test_images_of_single_steps_are_those_of_the_episode():
    episode, steps = image_task(), image_task(turns="step")
    images = episode.images(episode.examples("test")[0])
    assert [steps.images(example)[0].tobytes() for example in steps.examples("test")] == [image.tobytes() for image in images]


def test_the_sign_stands_where_the_observation_says():
    routes, places = draw_routes(City("brick", 1), 20, (2, 3), (1, 2), "city")
    board = np.array((250, 248, 236))
    column = {"left": 3, "right": 1, "front": 0, "behind": 2}
    for route in routes:
        last = route.nodes[-1]
        panorama = draw_panorama(places[last.geocode], "brick", last.geocode, 400)
        pixels = np.asarray(grid(panorama, 0.0, last.heading, 100)).astype(int)
        quarters = [pixels[r * 105 : r * 105 + 100, c * 105 : c * 105 + 100] for r in (0, 1) for c in (0, 1)]
        shares = [(np.abs(quarter - board).sum(axis=-1) < 12).mean() for quarter in quarters]
        assert int(np.argmax(shares)) == column[last.observation.rsplit(" ", 1)[1]], last.observation


def city_folder(folder, count=4):
    routes, places = draw_routes(City("brick", 1), count, (2, 2), (2, 2), "city")
    panoramas = {g: draw_panorama(places[g], "brick", g, 256) for route in routes for g in (n.geocode for n in route.nodes)}
    export(folder, routes, panoramas)
    return routes, panoramas


def test_images_come_from_an_exported_folder_as_from_the_city_but_for_jpeg(tmp_path):
    routes, panoramas = city_folder(tmp_path / "city")
    task = image_task(source=str(tmp_path / "city"), num_train=2)
    example = task.examples("train")[0]
    route = routes[int(example.metadata["route"].rsplit("/", 1)[1])]
    for node, image in zip(route.nodes, task.images(example), strict=True):
        drawn = grid(panoramas[node.geocode], 0.0, node.heading, 64)
        assert np.abs(np.asarray(image, float) - np.asarray(drawn, float)).mean() < 6
    assert task.evaluation_sets()["visual_ood"] == []


def test_visual_ood_may_be_another_folder(tmp_path):
    city_folder(tmp_path / "here")
    other = draw_routes(City("glass", 1), 3, (2, 2), (1, 1), "there")[0]
    export(tmp_path / "there", other)
    source, away = str(tmp_path / "here"), str(tmp_path / "there")
    task = image_task(form="text", source=source, visual_ood=away, num_train=2)
    assert [e.metadata["route"] for e in task.evaluation_sets()["visual_ood"]] == ["visual_ood/there/0", "visual_ood/there/1"]
    assert len(task.examples("train")) == 2


def test_a_folder_with_too_few_routes_is_refused(tmp_path):
    city_folder(tmp_path / "city", count=2)
    task = image_task(form="text", source=str(tmp_path / "city"))
    message = r"^task\.num_validation \+ num_test: found 2, expected less than the 2 different routes of "
    with pytest.raises(UserError, match=message):
        task.examples("train")


def test_positions_that_no_panorama_is_near_are_left_out_and_a_turn_must_have_one(tmp_path):
    routes, panoramas = city_folder(tmp_path / "city")
    left_out = {n.geocode for r in routes for n in r.nodes if n.action == "forward()" and not n.intersection}
    left_out -= {n.geocode for r in routes for n in r.nodes if n.action != "forward()"}
    export(tmp_path / "city", routes, {g: p for g, p in panoramas.items() if g not in left_out})
    task = image_task(source=str(tmp_path / "city"), num_train=2)
    for example in task.examples("train"):
        route = routes[int(example.metadata["route"].rsplit("/", 1)[1])]
        kept = [node for node in route.nodes if node.geocode not in left_out]
        assert len(task.images(example)) == len(kept) < len(route.nodes)
    export(tmp_path / "city", routes, {g: panoramas[g] for g in list(panoramas)[:1]})
    with pytest.raises(UserError, match=r"/gps_pano_mapping\.pkl: .*, node \d+: found no panorama within 20 m, expected one$"):
        image_task(source=str(tmp_path / "city"), num_train=2).examples("train")


def test_the_nearest_panorama_within_20_metres_is_taken(tmp_path):
    places = {move(START, 90, metres): coloured_panorama(16) for metres in (0, 30, 75)}
    export(tmp_path, [], places)
    views = StreetViews(tmp_path)
    for metres, expected in ((0, 0), (14, 0), (16, 1), (49, 1), (51, None), (56, 2), (94, 2), (96, None)):
        for start in (START, move(START, 0, 5)):
            found = views.nearest(move(start, 90, metres))
            assert found == (None if expected is None else f"view{expected:06d}"), metres


class Hostile:
    """A pickle that would run a program."""

    def __reduce__(self):
        return os.system, ("echo broken into",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "found no such file, expected a pickled dict from (latitude, longitude) to a panorama's id"),
        (b"", "found a pickle that cannot be used (Ran out of input), expected a pickled dict"),
        (b"hello", "found a pickle that cannot be used ("),
        (
            pickle.dumps(Hostile()),
            f"found a pickle that cannot be used (it asks for {os.name}.system), expected a pickled dict",
        ),
        (pickle.dumps({np.float64(1): "a"}), "found a pickle that cannot be used (it asks for numpy"),
        (pickle.dumps([1]), "found [1], expected a pickled dict"),
        (pickle.dumps({}), "found {}, expected a pickled dict"),
        (pickle.dumps({(1.0, "x"): "a"}), "key: found (1.0, 'x'), expected [latitude, longitude] in degrees"),
        (pickle.dumps({(1.0, 2.0): 5}), "value of (1.0, 2.0): found 5, expected a panorama's id"),
        (pickle.dumps({(1.0, 2.0): "../../x"}), "value of (1.0, 2.0): found '../../x', expected a panorama's id"),
    ],
)
def test_a_mapping_that_is_damaged_or_hostile_is_refused(content, message, tmp_path, capfd):
    file = tmp_path / "gps_pano_mapping.pkl"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(UserError, match=f"^{re.escape(f'{file}: {message}')}"):
        StreetViews(tmp_path)
    assert "broken into" not in capfd.readouterr().out


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("view000000.jpg", None, "found no such file, expected the panorama that "),
        ("view000000.jpg", b"no picture", "found a damaged picture ("),
        ("view000000.metadata.json", None, 'found no such file, expected an object with "rotation"'),
        ("view000000.metadata.json", b"{", "found malformed JSON ("),
        ("view000000.metadata.json", b'{"rotation": "up"}', "rotation: found 'up', expected degrees"),
        ("view000000.metadata.json", b"[]", "rotation: found null, expected degrees"),
    ],
)
def test_a_panorama_that_is_missing_or_damaged_is_named(name, content, message, tmp_path):
    export(tmp_path, [], {START: coloured_panorama(16)})
    file = tmp_path / "street_views" / name
    file.unlink()
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(UserError, match=f"^{re.escape(f'{file}: {message}')}"):
        StreetViews(tmp_path).panorama("view000000")


def test_the_contact_sheet_shows_both_styles():
    sheet = contact_sheet()
    side = (sheet.width - GAP) // COLUMNS
    brick, glass = (sheet.crop((0, top, sheet.width, top + side)) for top in (0, sheet.height // 2))
    assert sheet.height == 2 * (side + CAPTION) + GAP
    assert np.minimum(colours(brick), colours(glass)).sum() < 0.5
