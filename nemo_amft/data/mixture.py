"""Sources with weights: what a stream mixes, and by which shares."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from nemo_amft.config.schema import Mixture, SourceConfig
from nemo_amft.data import places
from nemo_amft.data.sources import Need, load_examples
from nemo_amft.types import Example, UserError

TAKEN = frozenset({"mean", "correct", "groups_all_correct", "groups_none_correct", "timeout", "error"})
"""Names under reward/ in metrics, which a source may not have."""


def mixed(sources: Mixture | None) -> dict[str, SourceConfig]:
    """The sources of a mixture by name; none of what is no mixture."""
    return {name_of(one): one for one in sources or () if isinstance(one, SourceConfig)}


def name_of(source: SourceConfig) -> str:
    """What a source of a mixture is called in metrics, and what its examples have as `Example.source`."""
    return source.name or places.name_of(places.sources_of(source.path)[0])


def weights_of(sources: Mixture | None) -> dict[str, float]:
    """Name -> weight of the sources of a mixture; none of what is no mixture."""
    return {name: source.weight for name, source in mixed(sources).items()}


def places_of(sources: Mixture | None) -> tuple[str, ...]:
    """Every place that is read."""
    parts = [one.path for one in sources or () if isinstance(one, SourceConfig)] or [sources]
    return tuple(place for part in parts for place in places.sources_of(part))


def load_mixture(sources: Mixture | None, split: str, need: Need = "answer", demonstrations: bool = True) -> list[Example]:
    """All examples of `sources`, as `load_examples` reads them; those of a mixture know which of its sources they are of."""
    if sources is None:
        return []
    parts = mixed(sources)
    if not parts:
        return load_examples(sources, split, need=need, demonstrations=demonstrations)
    return [
        replace(example, source=name)
        for name, source in parts.items()
        for example in load_examples(source.path, split, need=need, demonstrations=demonstrations)
    ]


def left_of(weights: Mapping[str, float], examples: Sequence[Example]) -> dict[str, float]:
    """The weights of the sources that some of `examples` are of."""
    there = {example.source for example in examples}
    return {name: weight for name, weight in weights.items() if name in there}


def spread(examples: Sequence[Example]) -> list[Example]:
    """The examples in an order in which each beginning has of every source about the share that all have."""
    counts = Counter(example.source for example in examples)
    seen: Counter[str] = Counter()
    keys = []
    for example in examples:
        seen[example.source] += 1
        keys.append((seen[example.source] - 0.5) / counts[example.source])
    return [examples[i] for i in sorted(range(len(examples)), key=keys.__getitem__)]


def refuse_empty(key: str, weights: Mapping[str, float], examples: Sequence[Example]) -> None:
    """Raises UserError for a source of the mixture `key` that no example is left of."""
    left = left_of(weights, examples)
    for name, weight in weights.items():
        if name not in left:
            raise UserError(f"{key}: found no example left of {name}, expected at least one, as it has weight {weight:g}")


def complaints(key: str, sources: Mixture | None) -> Iterator[str]:
    """One line for each thing about the sources of `key` that cannot be, if they are a mixture."""
    parts = [one for one in sources or () if isinstance(one, SourceConfig)]
    names = [name_of(one) for one in parts]
    for i, (source, name) in enumerate(zip(parts, names, strict=True)):
        if not source.weight > 0:
            yield f"{key}[{i}].weight: found {source.weight:g}, expected more than 0"
        if name in TAKEN or name.endswith("_tokens"):  # which are sums (parallel/reductions.py)
            yield f"{key}[{i}].name: found {name!r}, expected another one, which no other metric has"
        if name in names[:i]:
            yield f"{key}[{i}].name: found {name!r} again, expected a name of its own"
