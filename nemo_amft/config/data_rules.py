"""What cannot be of the sources under `data` and `benchmarks`, and of a method with them."""

from __future__ import annotations

from collections.abc import Iterator

from nemo_amft.config.schema import Config
from nemo_amft.data.mixture import complaints, places_of
from nemo_amft.data.places import missing


def violations(config: Config) -> Iterator[str]:
    """One line for each broken rule."""
    data = config.data
    given = {f"data.{name}": getattr(data, name) for name in ("train", "demonstrations", "validation", "test")}
    for key, sources in (given | {f"benchmarks.{name}": source for name, source in config.benchmarks.items()}).items():
        if sources == ():
            yield f"{key}: found an empty list, expected at least one source"
        yield from (f"{key}: {found}" for place in places_of(sources) if (found := missing(place)) is not None)
        yield from complaints(key, sources)
    if data.demonstrations is not None:
        yield from _own_demonstrations(config)


def _own_demonstrations(config: Config) -> Iterator[str]:
    """That something has a use for data.demonstrations."""
    method = config.method.cls
    if getattr(method, "needs_demonstrations", False):
        yield (
            f"data.demonstrations: found with {method.__name__}, which imitates demonstrations of the prompts it rolls out, "
            "expected null: those are in the rows of data.train"
        )
    elif not imitating(config):
        yield f"data.demonstrations: found with {method.__name__} and warmup.steps=0, expected null, as nothing is imitated"


def imitating(config: Config) -> str:
    """What imitates demonstrations in this run, "" for nothing."""
    if config.warmup.steps:
        return f"warmup.steps={config.warmup.steps}"
    method = config.method.build(config.rollout.longest)
    return f"the method, {type(method).__name__}" if method.imitates(config.data) else ""
