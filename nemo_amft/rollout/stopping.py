"""Ends a response where its text holds a stop string (rollout.stop), in engines that have no detokenizer of their own."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream


class StopStrings:
    """The text of one response as it grows, token by token, special tokens included.

    Text is what `tokenizers` streams, and so the same as in vLLM: a character whose bytes come in several tokens is text once
    it is complete, and the first token keeps the blank before it.
    """

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int], stop: Sequence[str]):
        self._tokenizer, self._stop = tokenizer, stop
        self._stream = DecodeStream(ids=list(prompt), skip_special_tokens=False)
        self._tail, self._kept = "", max(map(len, stop)) - 1

    def completed_by(self, token_id: int) -> bool:
        """Add a token; whether one of the strings stands in the response now."""
        text = self._tail + self._text_of(token_id)
        self._tail = text[len(text) - self._kept :] if self._kept < len(text) else text
        return any(string in text for string in self._stop)

    def _text_of(self, token_id: int) -> str:
        try:
            return self._stream.step(self._tokenizer, token_id) or ""
        except Exception as error:
            if not str(error).startswith("Invalid prefix"):
                raise
            # Bytes that are no character can make the text so far another, which the stream takes for a mistake. vLLM begins
            # anew, too.
            self._stream = DecodeStream(skip_special_tokens=False)
            return self._stream.step(self._tokenizer, token_id) or ""
