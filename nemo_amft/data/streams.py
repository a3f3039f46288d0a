"""Endless, restorable order of examples."""

from __future__ import annotations

import functools
import random
from collections.abc import Mapping, Sequence

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

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Continue after `state["position"]` examples."""
        position = state["position"]
        assert isinstance(position, int), position
        assert position >= 0, position
        self._position = position

    def _shuffled(self, epoch: int) -> list[int]:
        order = list(range(len(self._examples)))
        random.Random(f"{self._seed}/{self._name}/{epoch}").shuffle(order)
        return order
