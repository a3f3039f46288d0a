"""The V-IRL navigation task."""

from __future__ import annotations

import functools
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from nemo_amft.config.schema import DataConfig
from nemo_amft.config.typed import Location
from nemo_amft.tasks.base import Split
from nemo_amft.tasks.virl.actions import Space
from nemo_amft.tasks.virl.city import STYLES, City, Place, StyleName, draw_routes
from nemo_amft.tasks.virl.environment import NavigationEnvironment, Reward, Style, write_answer
from nemo_amft.tasks.virl.headings import Geocode
from nemo_amft.tasks.virl.published import MAPPING, StreetViews, load_routes
from nemo_amft.tasks.virl.routes import Route
from nemo_amft.tasks.virl.texts import CODES, OTHER_CODES, CompactTexts, Form, FullTexts, Texts
from nemo_amft.types import Example, UserError

if TYPE_CHECKING:
    from PIL.Image import Image

SYNTHETIC = "synthetic"

OTHER_STYLE: dict[StyleName, StyleName] = {"brick": "glass", "glass": "brick"}
OTHER_SPACE: dict[Space, Space] = {"absolute": "relative", "relative": "absolute"}


@dataclass(frozen=True)
class VirlConfig:
    source: Location = SYNTHETIC
    """Routes: "synthetic", or a folder in the published layout, such as nyc_1k_routes (see published.py)."""
    visual_ood: Location | None = None
    """Folder with the routes of other cities, such as VLN_mini. null: where source is synthetic the other style, else none."""
    city: StyleName = "brick"
    """Style of the synthetic city; the other one is the visual OOD."""
    num_train: int = 1000
    """Training routes (of a folder: at most). With turns=step each gives as many examples as it has positions."""
    num_validation: int = 48
    """Routes of D_val, different from the others."""
    num_test: int = 48
    """Routes of the final evaluation and of the rule OOD, different from the others."""
    num_ood: int = 18
    """Routes of the visual OOD, at most (VLN mini has 18)."""
    legs: tuple[int, int] = (2, 4)
    """Fewest and most turns of a synthetic route, its length."""
    blocks: tuple[int, int] = (1, 2)
    """Fewest and most blocks from one turn to the next; beyond one, intersections are passed that look like turns."""
    positions_between: int = 1
    """Positions between two intersections of a synthetic city, or between two milestones of a folder's routes."""
    action_space: Space = "absolute"
    """absolute: turn_direction(north). relative: turn_direction(left). The other one is the rule OOD."""
    form: Form = "text"
    """What the agent gets of the present position: a description, or an image, which the model has to take."""
    reward: Reward = "original"
    """original: the sum of 1, -1.5 and -1 over the responses. binary: 1 for success, else 0."""
    turns: Literal["episode", "step"] = "episode"
    """episode: a route is a conversation. step: each position is an example of its own, with what led there in the prompt."""
    attempts: int = 2
    """Responses at one position before the episode has failed; with turns=step there is one."""
    style: Style = "full"
    """full: sentences and JSON. compact: a few characters, for small models from random weights."""
    view_size: int = 640
    """Pixels of a street view's side; an image is 2x2 of them with a cross of 5 pixels."""

    def __post_init__(self) -> None:
        (fewest, most), (short, long) = self.legs, self.blocks
        checks = (
            (bool(self.source), "source", self.source, f"{SYNTHETIC!r} or a folder"),
            (self.num_train >= 1, "num_train", self.num_train, "at least 1"),
            (self.num_validation >= 0, "num_validation", self.num_validation, "at least 0"),
            (self.num_test >= 0, "num_test", self.num_test, "at least 0"),
            (self.num_ood >= 0, "num_ood", self.num_ood, "at least 0"),
            (2 <= fewest <= most, "legs", self.legs, "two numbers, the first at least 2, the second no smaller"),
            (1 <= short <= long, "blocks", self.blocks, "two numbers, the first at least 1, the second no smaller"),
            (self.positions_between >= 1, "positions_between", self.positions_between, "at least 1"),
            (self.attempts >= 1, "attempts", self.attempts, "at least 1"),
            (self.view_size >= 32, "view_size", self.view_size, "at least 32"),
            (self.style == "full" or self.form == "text", "style", self.style, "'full', as form is 'image'"),
        )
        for holds, key, found, expected in checks:
            if not holds:
                raise UserError(f"task.{key}: found {found!r}, expected {expected}")


@dataclass(frozen=True)
class _World:
    """Routes, and what their street views are made from: places of a synthetic city, or a folder's panoramas."""

    routes: list[Route]
    style: StyleName | None = None
    places: dict[Geocode, Place] | None = None
    views: StreetViews | None = None


class VirlTask:
    """Navigation by instructions; reward by the environment. See VirlConfig for what can be varied.

    With turns=episode an example is a route and its demonstration a conversation. With turns=step it is a position, with one
    response.
    """

    Config: ClassVar[type[VirlConfig]] = VirlConfig
    generated = True

    def __init__(self, config: VirlConfig, data: DataConfig, seed: int) -> None:
        """Raises UserError if data names files, which this task would silently ignore, or a folder is not there."""
        for key in ("train", "validation", "test"):
            found = getattr(data, key)
            if found is not None:
                raise UserError(f"data.{key}: found {found!r}, expected null, as the task reads its routes from task.source")
        for key, found, word in (("source", config.source, SYNTHETIC), ("visual_ood", config.visual_ood, None)):
            if found != word and not Path(found).is_dir():
                shown = "null" if word is None else repr(word)
                raise UserError(f"task.{key}: found {found!r}, expected {shown} or a folder")
        self.config = config
        self.seed = seed

    def examples(self, split: Split) -> list[Example]:
        """The routes of `split`, or their positions. No problem text is in two splits. Raises UserError (see published.py)."""
        return self._write(self._splits[split], split, self.config.action_space)

    def evaluation_sets(self) -> dict[str, list[Example]]:
        """Problems out of distribution: "rule_ood", the test routes in the other action space, and "visual_ood", another city.

        "visual_ood" is empty where source is a folder and visual_ood is null. Raises UserError as `examples` does.
        """
        config = self.config
        other = self._other_world.routes if self._other_world else []
        return {
            "rule_ood": self._write(self._splits["test"], "rule_ood", OTHER_SPACE[config.action_space]),
            "visual_ood": self._write(other, "visual_ood", config.action_space, OTHER_CODES),
        }

    @property
    def max_turns(self) -> int:
        """The most responses of an episode: 1 with turns=step, else `attempts` at each position of the longest route."""
        if self.config.turns == "step":
            return 1
        routes = [*self._world.routes, *(self._other_world.routes if self._other_world else [])]
        return self.config.attempts * max(len(route.nodes) for route in routes)

    def environment(self) -> NavigationEnvironment:
        """What judges conversations, also those of one response; independent of the split."""
        attempts = 1 if self.config.turns == "step" else self.config.attempts
        return NavigationEnvironment(attempts, self.config.reward, self.config.style)

    def images(self, example: Example) -> list[Image]:
        """The images of an example of form=image: (2 view_size + 5) pixels a side, each as views.py lays it out.

        One a position, in order: the first belongs to the prompt, each of the others to the message that leads to its position.
        After a wrong action the image stays the same. None where form=text. Raises UserError for a missing or damaged panorama.
        """
        if self.config.form == "text":
            return []
        name, first, last = example.metadata["route"], example.metadata["first"], example.metadata["last"]
        world, route = self._by_name[name]
        return [self._image(world, route, place) for place in range(first, last + 1)]

    # ---- routes

    @functools.cached_property
    def _world(self) -> _World:
        config = self.config
        if config.source != SYNTHETIC:
            return self._folder(config.source, "source")
        return self._synthetic(config.city, config.num_train + config.num_validation + config.num_test)

    @functools.cached_property
    def _other_world(self) -> _World | None:
        config = self.config
        if config.visual_ood is not None:
            world = self._folder(config.visual_ood, "visual_ood")
            return replace(world, routes=world.routes[: config.num_ood])
        if config.source != SYNTHETIC:
            return None
        return self._synthetic(OTHER_STYLE[config.city], config.num_ood)

    def _synthetic(self, style: StyleName, count: int) -> _World:
        config = self.config
        try:
            routes, places = draw_routes(
                City(style, self.seed, config.positions_between),
                count,
                config.legs,
                config.blocks,
                f"virl/{style}",
                self._first_prompt,
            )
        except ValueError as error:
            raise UserError(f"task.legs, task.blocks: {error}") from None
        return _World(routes, style, places)

    def _folder(self, folder: str, key: str) -> _World:
        config = self.config
        routes = [replace(route, id=f"{key}/{route.id}") for route in load_routes(folder, config.positions_between)]
        if config.form == "text":
            return _World(routes)
        views = StreetViews(folder)
        return _World([_seen(route, views, folder) for route in routes], views=views)

    @functools.cached_property
    def _splits(self) -> dict[Split, list[Route]]:
        """Which route is in which split depends on the routes, their order and the seed."""
        config, routes = self.config, list(self._world.routes)
        held_out = config.num_validation + config.num_test
        if config.source != SYNTHETIC:
            # A folder may hold one way twice; in two splits it would be a test problem that was trained on.
            routes = list({self._first_prompt(route): route for route in routes}.values())
            if len(routes) <= held_out:
                raise UserError(
                    f"task.num_validation + num_test: found {held_out}, expected less than the {len(routes)} different routes "
                    f"of {config.source}"
                )
            random.Random(f"virl/{self.seed}/splits").shuffle(routes)
        return {
            "validation": routes[: config.num_validation],
            "test": routes[config.num_validation : held_out],
            "train": routes[held_out : held_out + config.num_train],
        }

    @functools.cached_property
    def _by_name(self) -> dict[str, tuple[_World, Route]]:
        worlds = [world for world in (self._world, self._other_world) if world is not None]
        return {route.id: (world, route) for world in worlds for route in world.routes}

    # ---- examples

    def _write(self, routes: Sequence[Route], name: str, space: Space, codes: str = CODES) -> list[Example]:
        examples = []
        for number, route in enumerate(routes):
            texts = self._texts(route, space, codes)
            if self.config.turns == "episode":
                examples.append(_example(f"virl/{name}/{number}", route, space, texts, range(len(route.nodes))))
            else:
                examples.extend(
                    _example(f"virl/{name}/{number}/{place}", route, space, texts, range(place, place + 1))
                    for place in range(len(route.nodes))
                )
        return examples

    def _texts(self, route: Route, space: Space, codes: str = CODES) -> Texts:
        if self.config.style == "compact":
            return CompactTexts(route, space, codes)
        return FullTexts(route, space, self.config.form)

    def _first_prompt(self, route: Route) -> str:
        """A route's problem text. All later prompts hold its instructions, so they differ where these do."""
        return self._texts(route, self.config.action_space).prompt(0)

    def _image(self, world: _World, route: Route, place: int) -> Image:
        from nemo_amft.tasks.virl.views import grid

        node, size = route.nodes[place], self.config.view_size
        if world.views is not None:
            name = world.views.nearest(node.geocode)
            assert name is not None, (route.id, place)
            return grid(*world.views.panorama(name), node.heading, size)
        from nemo_amft.tasks.virl.drawing import draw_panorama

        if world.places is None or world.style is None:
            raise UserError("task.form: found 'text', expected 'image', as images are asked for")
        # Four views of 90 degrees: at the centre of a view, a degree has a little more pixels than here.
        return grid(draw_panorama(world.places[node.geocode], world.style, node.geocode, 4 * size), 0.0, node.heading, size)


def _example(name: str, route: Route, space: Space, texts: Texts, places: range) -> Example:
    """`places` as one conversation. One message is a plain demonstration, more are a tuple."""
    turns = [texts.answer(places[0])]
    for place in places[1:]:
        turns += [texts.next_view(place), texts.answer(place)]
    return Example(
        id=name,
        messages=({"role": "user", "content": texts.prompt(places[0])},),
        answer=write_answer(route, space, texts, places),
        demonstration=tuple(turns) if len(turns) > 1 else turns[0],
        source="virl",
        metadata={"route": route.id, "first": places[0], "last": places[-1]},
    )


def _seen(route: Route, views: StreetViews, folder: str) -> Route:
    """`route` without those positions between milestones that no panorama is near to, as the original leaves them out."""
    kept = []
    for place, node in enumerate(route.nodes):
        name = views.nearest(node.geocode)
        if name is not None and views.has_file(name):
            kept.append(node)
        elif node.direction is not None or place == len(route.nodes) - 1 or node.intersection:
            missing = "no panorama within 20 m" if name is None else f"no file street_views/{name}.jpg"
            raise UserError(f"{folder}/{MAPPING}: {route.id}, node {place + 1}: found {missing}, expected one")
    return replace(route, nodes=tuple(kept))


assert set(OTHER_STYLE) == set(STYLES)
