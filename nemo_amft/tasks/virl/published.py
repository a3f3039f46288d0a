"""Reads and writes the layout of SFTvsRL_Data's routes: a folder with

    route_infos.json       [routes, a number]: the number counts the destinations that were tried; it is checked, and not used
    gps_pano_mapping.pkl   a pickled dict from (latitude, longitude) to a panorama's id; needed for images only
    street_views/          ID.jpg, an equirectangular panorama, and ID.metadata.json with its "rotation"; needed for images only

A route has start_place.relocated_geocode, dest_place.name, route_results.geocode_list (the milestones: where one turns, and
last the end), init_heading, and milestone_info. This is a text of one block in braces a milestone, with a line each for
"landmarks" (what is seen on arriving there) and "to_next_intersection_heading" ("177 (south)": the heading that leads there).
The positions between are not in the files; the original interpolates five between two milestones and drops each with
probability 1/2, anew in every episode. Here `positions_between` are laid evenly, without those within 8 m of a milestone, so
that a route is always the same.

An optional route_results.node_list gives the positions themselves (geocode, heading, gt_action, observation, intersection) and
then takes the place of all that. `export` writes both; a route of a synthetic city has intersections that one only passes,
which milestones cannot say.

Assumed, as the files could not be looked at here: what V-IRL's and SFTvsRL's published code writes and reads. "instruction",
a paraphrase by a language model, and all other keys are ignored. init_heading 0 is taken as north; the original draws a random
heading in its place, which changes the words of the first turn.
"""

from __future__ import annotations

import json
import math
import pickle
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from nemo_amft.tasks.virl.actions import FORWARD, STOP, turn
from nemo_amft.tasks.virl.headings import COMPASS, Geocode, between, distance
from nemo_amft.tasks.virl.routes import NOTHING, Node, Route
from nemo_amft.types import UserError

if TYPE_CHECKING:
    from PIL.Image import Image

ROUTES, MAPPING, VIEWS = "route_infos.json", "gps_pano_mapping.pkl", "street_views"

MIN_SPACING_M = 8.0
"""Positions nearer to a milestone are left out, as in the original."""

MAPPING_RADIUS_M = 20.0
"""A position takes the nearest panorama within this distance, as in the original."""

_HEADING = re.compile(r"\s*(-?\d+)\s*\(\s*([a-z]+)\s*\)\s*")
_NO_LANDMARK = ("No landmark nearby", "No landmarks nearby", "")


class _Bad(ValueError):
    """One line: the key, what was found and what is expected. The caller adds file and route."""


def load_routes(folder: str | Path, positions_between: int = 2) -> list[Route]:
    """All routes of `folder`, ids "FOLDER/0", ...; raises UserError, with one line, for what cannot be used."""
    path = Path(folder) / ROUTES
    value = _read_json(path, "[routes, count]")
    if not (isinstance(value, list) and len(value) == 2 and isinstance(value[0], list)):
        raise UserError(f"{path}: found {_show(value)}, expected [routes, count]")
    if not (type(value[1]) is int and value[1] >= 0):
        raise UserError(f"{path}: count: found {_show(value[1])}, expected a number")
    if not value[0]:
        raise UserError(f"{path}: found no routes, expected at least one")
    routes = []
    for number, record in enumerate(value[0]):
        try:
            routes.append(_route(f"{Path(folder).name}/{number}", record, positions_between))
        except ValueError as error:
            raise UserError(f"{path}, route {number + 1}: {error}") from None
    return routes


def export(
    folder: str | Path, routes: Sequence[Route], panoramas: Mapping[Geocode, Image] | None = None, rotation: float = 0.0
) -> None:
    """Write `routes`, and the panoramas at their points (all with north at `rotation`), in the layout that load_routes reads.

    Node lists are written beside the milestones, so that reading gives equal routes, ids aside. `folder` is made if needed.
    """
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    (target / ROUTES).write_text(json.dumps([[_record(route) for route in routes], len(routes)], indent=1), encoding="utf-8")
    if panoramas is None:
        return
    (target / VIEWS).mkdir(exist_ok=True)
    mapping = {geocode: f"view{number:06d}" for number, geocode in enumerate(panoramas)}
    with (target / MAPPING).open("wb") as file:
        pickle.dump(mapping, file)
    for geocode, name in mapping.items():
        panoramas[geocode].save(target / VIEWS / f"{name}.jpg", quality=92)
        (target / VIEWS / f"{name}.metadata.json").write_text(json.dumps({"rotation": rotation}), encoding="utf-8")


class StreetViews:
    """The panoramas of a folder."""

    def __init__(self, folder: str | Path) -> None:
        """Read the mapping; raises UserError if it is missing, damaged, or holds anything but plain values."""
        self._folder = Path(folder)
        self._path = self._folder / MAPPING
        self._ids = _read_mapping(self._path)
        # Cells of about the search radius, so that a search looks at nine of them and not at the whole city.
        self._cells: dict[tuple[int, int], list[Geocode]] = {}
        for geocode in self._ids:
            self._cells.setdefault(_cell(geocode), []).append(geocode)

    def nearest(self, geocode: Geocode) -> str | None:
        """The id of the nearest panorama within 20 m, if there is one."""
        if geocode in self._ids:
            return self._ids[geocode]
        row, column = _cell(geocode)
        near = [
            known
            for down in (-1, 0, 1)
            for along in range(-_REACH, _REACH + 1)
            for known in self._cells.get((row + down, column + along), ())
        ]
        found = min(near, key=lambda known: distance(geocode, known), default=None)
        return self._ids[found] if found is not None and distance(geocode, found) <= MAPPING_RADIUS_M else None

    def has_file(self, name: str) -> bool:
        """Whether panorama `name` is in the folder."""
        return (self._folder / VIEWS / f"{name}.jpg").is_file()

    def panorama(self, name: str) -> tuple[Image, float]:
        """The panorama and its rotation, in degrees; raises UserError for a missing or damaged file."""
        from PIL import Image, UnidentifiedImageError

        path = self._folder / VIEWS / f"{name}.jpg"
        try:
            with Image.open(path) as file:
                picture = file.convert("RGB")
        except FileNotFoundError:
            raise UserError(f"{path}: found no such file, expected the panorama that {self._path} names") from None
        except (UnidentifiedImageError, OSError, Image.DecompressionBombError) as error:
            raise UserError(f"{path}: found a damaged picture ({_one_line(error)}), expected a panorama") from None
        metadata = path.with_name(f"{name}.metadata.json")
        value = _read_json(metadata, 'an object with "rotation"')
        rotation = value.get("rotation") if isinstance(value, dict) else None
        if not _is_number(rotation):
            raise UserError(f"{metadata}: rotation: found {_show(rotation)}, expected degrees")
        return picture, float(rotation)


# ---- one route


def _route(name: str, record: Any, positions_between: int) -> Route:
    if not isinstance(record, dict):
        raise _Bad(f"found {_show(record)}, expected an object")
    goal = _object(record, "dest_place")
    destination = goal.get("name", "")
    if not isinstance(destination, str):
        raise _Bad(f"dest_place.name: found {_show(destination)}, expected a text")
    start = _object(record, "start_place")
    start_name = start.get("name") or ""
    results = _object(record, "route_results")
    if "node_list" in results:
        nodes = _listed_nodes(results["node_list"])
    else:
        key = "relocated_geocode" if "relocated_geocode" in start else "geocode"
        first = _geocode(start.get(key), f"start_place.{key}")
        nodes = _derived_nodes(record, first, results, positions_between)
    return Route(name, tuple(nodes), start_name if isinstance(start_name, str) else "", destination)


def _listed_nodes(value: Any) -> list[Node]:
    if not isinstance(value, list):
        raise _Bad(f"route_results.node_list: found {_show(value)}, expected a list")
    nodes = []
    for number, item in enumerate(value, start=1):
        if not isinstance(item, dict):
            raise _Bad(f"node {number}: found {_show(item)}, expected an object")
        where = f"node {number}: "
        action, seen, flag = item.get("gt_action"), item.get("observation"), item.get("intersection")
        for key, found, kind, expected in (
            ("gt_action", action, str, "a text"),
            ("observation", seen, str, "a text"),
            ("intersection", flag, bool, "true or false"),
        ):
            if not isinstance(found, kind):
                raise _Bad(f"{where}{key}: found {_show(found)}, expected {expected}")
        geocode, heading = _geocode(item.get("geocode"), f"{where}geocode"), _heading(item.get("heading"), f"{where}heading")
        nodes.append(Node(geocode, heading, action, NOTHING if seen in _NO_LANDMARK else seen, flag))
    return nodes


def _derived_nodes(record: dict[str, Any], start: Geocode, results: dict[str, Any], positions_between: int) -> list[Node]:
    """Positions from milestones. Start and end are no intersections, every other milestone is one, as in the original."""
    listed = results.get("geocode_list")
    if not isinstance(listed, list) or not listed:
        raise _Bad(f"route_results.geocode_list: found {_show(listed)}, expected a list of [latitude, longitude]")
    ends = [_geocode(item, f"route_results.geocode_list[{index}]") for index, item in enumerate(listed)]
    milestones = _milestones(record.get("milestone_info"))
    if len(milestones) != len(ends):
        raise _Bad(
            f"milestone_info: found {len(milestones)} milestones, expected {len(ends)}, as in route_results.geocode_list"
        )
    heading = _heading(record.get("init_heading", 0), "init_heading")
    nodes = [Node(start, heading, turn(milestones[0][2]), NOTHING, False)]
    for index, (end, (seen, heading, _)) in enumerate(zip(ends, milestones, strict=True)):
        begin = nodes[-1].geocode
        for number in range(1, positions_between + 1):
            point = between(begin, end, number / (positions_between + 1))
            if min(distance(begin, point), distance(point, end)) > MIN_SPACING_M:
                nodes.append(Node(point, heading, FORWARD, NOTHING, False))
        last = index == len(ends) - 1
        action = STOP if last else turn(milestones[index + 1][2])
        nodes.append(Node(end, heading, action, seen, not last))
    return nodes


def _milestones(value: Any) -> list[tuple[str, int, str]]:
    """(what is seen, heading that leads there, its compass name) of each block in braces."""
    if not isinstance(value, str):
        raise _Bad(f"milestone_info: found {_show(value)}, expected a text")
    found = []
    for number, block in enumerate(_blocks(value), start=1):
        key = f"milestone_info, milestone {number}: to_next_intersection_heading"
        heading = _HEADING.fullmatch(block.get("to_next_intersection_heading", ""))
        if heading is None or heading[2] not in COMPASS:
            shown = _show(block.get("to_next_intersection_heading"))
            raise _Bad(f"{key}: found {shown}, expected degrees and a direction, such as '177 (south)'")
        seen = block.get("landmarks", "")
        found.append((NOTHING if seen in _NO_LANDMARK else seen, _heading(int(heading[1]), key), heading[2]))
    return found


def _blocks(text: str) -> Iterator[dict[str, str]]:
    """Key and value of each line of each block. No JSON: the last value has a comma behind it, and names may hold quotes."""
    for part in text.split("}"):
        pairs = (line.strip().rstrip(",").split(":", 1) for line in part.replace("{", "\n").splitlines() if ":" in line)
        block = {key.strip().strip("\"'"): value.strip().strip("\"'") for key, value in pairs}
        if block:
            yield block


def _record(route: Route) -> dict[str, Any]:
    first = route.nodes[0]
    milestones = [
        {
            "intersection_idx": str(number),
            "landmarks": "No landmark nearby" if leg.end.landmark is None else leg.end.observation,
            "to_next_intersection_heading": f"{leg.end.heading} ({leg.direction})",
        }
        for number, leg in enumerate(route.legs, start=1)
    ]
    blocks = ("\n".join(f'"{key}": "{value}",' for key, value in milestone.items()) for milestone in milestones)
    return {
        "start_place": {"name": route.start, "geocode": first.geocode, "relocated_geocode": first.geocode},
        "dest_place": {"name": route.destination, "geocode": route.nodes[-1].geocode},
        "route_results": {
            "geocode_list": [leg.end.geocode for leg in route.legs],
            "node_list": [
                {
                    "geocode": node.geocode,
                    "heading": node.heading,
                    "gt_action": node.action,
                    "observation": node.observation,
                    "intersection": node.intersection,
                }
                for node in route.nodes
            ],
        },
        "init_heading": first.heading,
        "instruction": "",
        "milestone_info": "".join(f"\n{{\n{block}\n}}\n" for block in blocks),
    }


# ---- values


def _object(record: dict[str, Any], key: str) -> dict[str, Any]:
    value = record.get(key)
    if not isinstance(value, dict):
        raise _Bad(f"{key}: found {_show(value)}, expected an object")
    return value


def _geocode(value: Any, key: str) -> Geocode:
    if isinstance(value, list | tuple) and len(value) == 2 and all(_is_number(number) for number in value):
        latitude, longitude = float(value[0]), float(value[1])
        # At the poles a step to the east has no length in degrees.
        if abs(latitude) < 90 and abs(longitude) <= 180:
            return latitude, longitude
    raise _Bad(f"{key}: found {_show(value)}, expected [latitude, longitude] in degrees")


def _heading(value: Any, key: str) -> int:
    if not _is_number(value):
        raise _Bad(f"{key}: found {_show(value)}, expected degrees")
    return int(value) % 360


def _is_number(value: Any) -> bool:
    """Whether `value` is a number that could be an angle; integers of any length come out of JSON."""
    return isinstance(value, int | float) and not isinstance(value, bool) and -1e6 < value < 1e6


_CELL = MAPPING_RADIUS_M / 111_000.0
_REACH = 6
"""Cells to look at east and west: a degree of longitude is at least a sixth of one of latitude up to 80 degrees."""


def _cell(geocode: Geocode) -> tuple[int, int]:
    return math.floor(geocode[0] / _CELL), math.floor(geocode[1] / _CELL)


# ---- files


def _read_json(path: Path, expected: str) -> Any:
    try:
        return json.loads(path.read_bytes().decode("utf-8-sig"))
    except FileNotFoundError:
        raise UserError(f"{path}: found no such file, expected {expected}") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: found byte 0x{error.object[error.start]:02x} at {error.start}, expected UTF-8") from None
    except json.JSONDecodeError as error:
        where = f"{error.msg} at line {error.lineno}, column {error.colno}"
        raise UserError(f"{path}: found malformed JSON ({where}), expected {expected}") from None
    except (RecursionError, ValueError) as error:  # nested too deep, or a number of thousands of digits
        raise UserError(f"{path}: found JSON that cannot be used ({_one_line(error)}), expected {expected}") from None


class _PlainValues(pickle.Unpickler):
    """A pickle can run any program that it names; this one may name none, so plain values are all that it can hold."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__(file)

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


def _read_mapping(path: Path) -> dict[Geocode, str]:
    expected = "a pickled dict from (latitude, longitude) to a panorama's id"
    try:
        with path.open("rb") as file:
            value = _PlainValues(file).load()
    except FileNotFoundError:
        raise UserError(f"{path}: found no such file, expected {expected}") from None
    except Exception as error:  # damaged pickles raise nearly anything
        raise UserError(f"{path}: found a pickle that cannot be used ({_one_line(error)}), expected {expected}") from None
    if not isinstance(value, dict) or not value:
        raise UserError(f"{path}: found {_show(value)}, expected {expected}")
    mapping = {}
    for key, name in value.items():
        try:
            geocode = _geocode(key, "key")
        except _Bad as error:
            raise UserError(f"{path}: {error}") from None
        if not (isinstance(name, str) and name and Path(name).name == name):
            raise UserError(f"{path}: value of {key}: found {_show(name)}, expected a panorama's id")
        mapping[geocode] = name
    return mapping


def _show(value: Any) -> str:
    """A value on one line, short. None is null, as in the files."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:160] or type(error).__name__
