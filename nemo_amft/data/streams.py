"""Endless, restorable order of examples."""

from __future__ import annotations

import functools
import random
from collections.abc import Mapping, Sequence
from typing import Any

from nemo_amft.types import Example, UserError


class ExampleStream:
    """Epoch after epoch of `examples`, each in an order that depends on (seed, name, epoch) and the number of examples alone.

    The whole state is one number, so a resumed run continues exactly. Every rank holds an equal stream and takes the same
    examples from it.
    """

    def __init__(self, examples: Sequence[Example], seed: int, name: str) -> None:
        """`name` tells streams over the same examples apart. Raises UserError if there are none."""
        if not examples:
            raise UserError(f"data: found no examples for {name}, expected at least one")
        self._examples = examples
        self._seed = seed
        self._name = name
        self._position = 0
        # The current epoch's order is kept; shuffling for every example would be quadratic.
        self._order = functools.lru_cache(maxsize=1)(self._shuffled)

    @property
    def position(self) -> int:
        """Examples taken since the start, over all epochs."""
        return self._position

    @property
    def epoch(self) -> float:
        """Passes over the examples, as a fraction: 1.5 is half way through the second."""
        return self._position / len(self._examples)

    def take(self, n: int) -> list[Example]:
        """The next `n` examples; an epoch that ends on the way is followed by the next, so one may then occur twice."""
        assert n >= 0, n
        taken = []
        for position in range(self._position, self._position + n):
            epoch, index = divmod(position, len(self._examples))
            taken.append(self._examples[self._order(epoch)[index]])
        self._position += n
        return taken

    def state_dict(self) -> dict[str, int]:
        """What `load_state_dict` needs, as plain numbers."""
        return {"position": self._position}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue after `state["position"]` examples. Raises UserError for the state of a mixture."""
        if "position" not in state:
            raise _other_sources(self._name, {}, state["weights"])
        position = state["position"]
        assert isinstance(position, int), position
        assert position >= 0, position
        self._position = position

    def _shuffled(self, epoch: int) -> list[int]:
        order = list(range(len(self._examples)))
        random.Random(f"{self._seed}/{self._name}/{epoch}").shuffle(order)
        return order


class MixedStream:
    """Streams of several sources as one: each example comes from the source that is furthest behind its share.

    Shares are proportional to the weights, of the first examples as of all, and do not depend on how many a source has: a small
    one is repeated, as often as its weight asks. The state is the number of examples taken of each source. A stream that is
    restored with other weights has their shares from there on.
    """

    def __init__(self, examples: Sequence[Example], weights: Mapping[str, float], seed: int, name: str) -> None:
        """`weights`: of each `Example.source` among `examples`, positive. Raises UserError for a source without an example."""
        assert all(weight > 0 for weight in weights.values()), weights
        found = {source: [example for example in examples if example.source == source] for source in weights}
        assert sum(map(len, found.values())) == len(examples), "an example of a source without a weight"
        total = sum(weights.values())
        self._name, self._weights = name, dict(weights)
        self._shares = {source: weight / total for source, weight in weights.items()}
        self._streams = {source: ExampleStream(some, seed, f"{name}/{source}") for source, some in found.items()}
        self._since = dict.fromkeys(weights, 0)
        """Examples taken of each source before the present weights held."""

    @property
    def position(self) -> int:
        """Examples taken since the start, of all sources."""
        return sum(stream.position for stream in self._streams.values())

    def take(self, n: int) -> list[Example]:
        """The next `n` examples."""
        assert n >= 0, n
        return [self._streams[self._next()].take(1)[0] for _ in range(n)]

    def state_dict(self) -> dict[str, dict[str, Any]]:
        """What `load_state_dict` needs, as plain numbers."""
        return {"weights": self._weights, "positions": self._positions(), "since": self._since}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue after as many examples of each source as `state` says. Raises UserError for other sources."""
        before = state.get("weights", {})
        if before.keys() != self._weights.keys():
            raise _other_sources(self._name, self._weights, before)
        for source, stream in self._streams.items():
            stream.load_state_dict({"position": state["positions"][source]})
        same = before == self._weights
        self._since = state.get("since", dict.fromkeys(self._weights, 0)) if same else self._positions()

    def _positions(self) -> dict[str, int]:
        return {source: stream.position for source, stream in self._streams.items()}

    def _next(self) -> str:
        taken = {source: position - self._since[source] for source, position in self._positions().items()}
        due = sum(taken.values()) + 1
        return max(self._shares, key=lambda source: self._shares[source] * due - taken[source])


Stream = ExampleStream | MixedStream


def stream_of(examples: Sequence[Example], weights: Mapping[str, float], seed: int, name: str) -> Stream:
    """The stream of a mixture, or, without weights, of examples that are all alike. Raises UserError if there are none."""
    return MixedStream(examples, weights, seed, name) if weights else ExampleStream(examples, seed, name)


def some_of(examples: Sequence[Example], weights: Mapping[str, float], n: int) -> list[Example]:
    """The first `n` examples; of a mixture, as many of each source as the first `n` that a stream takes."""
    return MixedStream(examples, weights, 0, "some").take(n) if weights else list(examples[:n])


def _other_sources(name: str, found: Mapping[str, float], before: Mapping[str, float]) -> UserError:
    def listed(weights: Mapping[str, float]) -> str:
        return ", ".join(f"{source} with weight {weight:g}" for source, weight in weights.items()) or "no weights"

    return UserError(f"data: found {listed(found)} for the {name}, expected the checkpoint's, {listed(before)}")
