"""Several gold answers in the one text that an Example has room for."""

from __future__ import annotations

from collections.abc import Sequence

from nemo_amft.data.schemas import GOLD_SEPARATOR


def join_golds(golds: Sequence[str]) -> str:
    """One text for `golds`, any of which is right; a single one stands as it is."""
    return GOLD_SEPARATOR.join(golds)


def split_golds(answer: str) -> list[str]:
    """The golds that `answer` holds."""
    return answer.split(GOLD_SEPARATOR)
