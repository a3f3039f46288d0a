"""Keeps problems of one split out of another, by problem text."""

from __future__ import annotations

import hashlib
import logging
import unicodedata
from collections.abc import Iterable, Sequence

from nemo_amft.types import Example, UserError

logger = logging.getLogger(__name__)


def problem_text(example: Example) -> str:
    """What the user asks, without the system message, which all problems of a set share."""
    return "\n".join(message["content"] for message in example.messages if message["role"] != "system")


class _Folding(dict[int, str]):
    """Translation table of `normalise`, filled as characters occur: a set has millions of characters and few kinds."""

    def __missing__(self, code: int) -> str:
        character = chr(code)
        punctuation = unicodedata.category(character).startswith("P") and character not in "-*/%!"
        self[code] = " " if punctuation or character == "$" or character.isspace() else character
        return self[code]


_FOLDING = _Folding()


def normalise(text: str) -> str:
    """`text` in lower case with every run of whitespace and punctuation folded to one space.

    Signs of arithmetic and comparison are kept, as "3-2" and "3+2" are different problems: folding concerns Unicode's
    punctuation other than '-', '*', '/', '%' and '!', and TeX's '$'.
    """
    return " ".join(unicodedata.normalize("NFKC", text).lower().translate(_FOLDING).split())


def problem_key(example: Example) -> str:
    """Two examples are the same problem if their keys are equal. A text of punctuation alone is its own key."""
    text = problem_text(example)
    return normalise(text) or text


def overlap(examples: Iterable[Example], others: Iterable[Example]) -> list[tuple[Example, Example]]:
    """Pairs (example, other) that are the same problem, in the order of `examples`."""
    seen = {problem_key(other): other for other in others}
    return [(example, seen[key]) for example in examples if (key := problem_key(example)) in seen]


def refuse_overlap(name: str, examples: Sequence[Example], other_name: str, others: Sequence[Example]) -> None:
    """Raises UserError, naming the first shared problem, if the two sets share any."""
    shared = overlap(examples, others)
    if shared:
        found, seen = shared[0]
        text = " ".join(problem_text(found).split())
        raise UserError(
            f"{_origin(found)}: found a problem that {other_name} also has ({_origin(seen)}), {len(shared)} such in all, "
            f"expected {name} disjoint from it: {text[:80]!r}"
        )


def drop_overlap(name: str, examples: Sequence[Example], held_out: Iterable[Example]) -> list[Example]:
    """The examples that are no problem of `held_out`; logs how many of `name` were. Raises UserError if none is left."""
    seen = {problem_key(other): other for other in held_out}
    keys = [problem_key(example) for example in examples]
    kept = [example for example, key in zip(examples, keys, strict=True) if key not in seen]
    if len(kept) == len(examples):
        return kept
    first = next(i for i, key in enumerate(keys) if key in seen)
    found = f"{len(examples) - len(kept)} of {len(examples)} whose problem is held out for validation or a test"
    found += f" (first: {_origin(examples[first])} = {_origin(seen[keys[first]])})"
    if not kept:
        raise UserError(f"{name}: found {found}, expected others")
    logger.warning("%s: dropped %s", name, found)
    return kept


def hold_out(
    examples: Sequence[Example], size: int, seed: int, avoid: Iterable[Example] = ()
) -> tuple[list[Example], list[Example]]:
    """Split into (rest, held out), both in the order of `examples`, sharing no problem text, exact or normalised.

    Which problems are held out depends on their text and `seed` alone, not on the order of the rows. Problems of `avoid` (the
    test set) are never held out. Where several rows are one problem, the first is held out and the others go to neither part.
    Raises UserError if that leaves fewer than `size` problems, or none to train on.
    """
    if size == 0:
        return list(examples), []
    keys = [problem_key(example) for example in examples]
    avoided = {problem_key(example) for example in avoid}
    candidates = {key for key in keys if key not in avoided}
    if size > len(candidates) or size >= len(set(keys)):
        raise UserError(
            f"data.validation_size: found {size}, expected less than the {len(set(keys))} distinct problems of data.train"
            + (f", of which {len(candidates)} are not in data.test" if avoided else "")
        )
    held = set(sorted(candidates, key=lambda key: hashlib.sha256(f"{seed}/{key}".encode()).digest())[:size])
    rest = [example for example, key in zip(examples, keys, strict=True) if key not in held]
    first = {key: example for key, example in reversed(list(zip(keys, examples, strict=True))) if key in held}
    return rest, [example for example, key in zip(examples, keys, strict=True) if first.get(key) is example]


def _origin(example: Example) -> str:
    return str(example.metadata.get("origin", example.id))
