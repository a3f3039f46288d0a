"""Which engine draws which requests, when several run side by side."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby, pairwise

from nemo_amft.types import Request


def shares(requests: Sequence[Request], engines: int, max_new_tokens: int) -> list[range]:
    """Cut `requests` into `engines` contiguous ranges of about equal work; a range may be empty.

    Adjacent requests for the same prompt go to one engine, whose cache then holds the prompt once, unless they alone are
    more than an engine's fair share. Lengths of responses are not known beforehand: each request counts with its limit.
    """
    most = -(-len(requests) // engines)
    pieces: list[range] = []
    start = 0
    for _, group in groupby(requests, key=lambda request: request.prompt_token_ids):
        stop = start + sum(1 for _ in group)
        pieces += [range(i, min(i + most, stop)) for i in range(start, stop, most)]
        start = stop
    work = [len(piece) * (len(requests[piece.start].prompt_token_ids) + max_new_tokens) for piece in pieces]

    total, before, sizes = sum(work), 0, [0] * engines
    for piece, amount in zip(pieces, work, strict=True):
        # A piece goes where its middle falls: in order, so shares are contiguous, and off by half a piece at most.
        sizes[(2 * before + amount) * engines // (2 * total)] += len(piece)
        before += amount
    bounds = [sum(sizes[:i]) for i in range(engines + 1)]
    return [range(*pair) for pair in pairwise(bounds)]
