"""What an engine can hold."""

from __future__ import annotations

from collections.abc import Sequence

from nemo_amft.types import Request, SamplingParams, UserError


def check_lengths(requests: Sequence[Request], params: SamplingParams, most: int, limit: str) -> None:
    """Refuse requests whose prompt and response may exceed `most` tokens; `limit` names that limit in the message."""
    longest = max((len(request.prompt_token_ids) for request in requests), default=1)
    if longest + params.max_new_tokens > most:
        raise UserError(
            f"rollout: a prompt of {longest} tokens and max_new_tokens={params.max_new_tokens} "
            f"make {longest + params.max_new_tokens}, expected at most {most} ({limit})"
        )
    if any(not request.prompt_token_ids for request in requests):
        raise UserError("rollout: a prompt is empty, expected at least one token")
