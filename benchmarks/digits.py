"""The reward of grpo_step.py: the share of digits in a response. Verifier processes import it."""

from __future__ import annotations

from nemo_amft.types import Verdict


def verify(answer: str, response: str, finished: bool) -> Verdict:
    """Share of the characters that are digits; the answer does not matter."""
    return Verdict(sum(c.isdigit() for c in response) / max(len(response), 1), False)
