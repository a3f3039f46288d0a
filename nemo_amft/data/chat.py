"""From messages to token ids: the one path that prompts of rollouts and demonstrations both take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cached_property
from typing import Any

from nemo_amft.types import Example, TokenSequence, UserError

MARK = "RESPONSE-OF-FOLLOW-UP"
"""Stands for a response where only what follows it is asked for."""


def responses(example: Example) -> tuple[str, ...]:
    """The expert's responses in a demonstration, without the user's messages between them."""
    shown = example.demonstration
    return () if shown is None else (shown,) if isinstance(shown, str) else shown[::2]


class ChatTemplate:
    """A tokenizer's chat template, and counts of the demonstrations that were cut."""

    def __init__(
        self,
        tokenizer: Any,
        max_demonstration_tokens: int | None = None,
        now: datetime | None = None,
        end_token_ids: Sequence[int] = (),
    ) -> None:
        """`tokenizer` is a transformers tokenizer; raises UserError if it has no chat template or no end-of-sequence token.

        `max_demonstration_tokens` bounds a demonstration's response, its end token included; None: no bound. `now` is what a
        template that asks for the time is told (data/template.py); None: the time it is. `end_token_ids`: what else ends a
        response, beside the tokenizer's end token.
        """
        if tokenizer.chat_template is None:
            raise UserError(
                f"tokenizer {tokenizer.name_or_path}: found no chat template, expected one (or set model.chat_template)"
            )
        if tokenizer.eos_token_id is None:
            raise UserError(f"tokenizer {tokenizer.name_or_path}: found no end-of-sequence token, expected one")
        assert max_demonstration_tokens is None or max_demonstration_tokens >= 1, max_demonstration_tokens
        self._tokenizer = tokenizer
        self._max_demonstration_tokens = max_demonstration_tokens
        self._clock = {} if now is None else {"strftime_now": now.strftime}
        self.end_token_ids = tuple(dict.fromkeys((tokenizer.eos_token_id, *end_token_ids)))
        """Tokens that end a response; the first, the tokenizer's, is what demonstrations end with."""
        self.num_demonstrations = 0
        """Demonstrations made so far."""
        self.num_truncated = 0
        """Those of them that were cut, and so have lost their end."""

    @property
    def eos_token_id(self) -> int:
        """The id that ends a demonstration, and has to end a response."""
        return self._tokenizer.eos_token_id

    def prompt_ids(self, messages: Sequence[Mapping[str, str]], images: int = 0) -> tuple[int, ...]:
        """Token ids of the prompt, up to where the response starts, with a placeholder for each of the images that the last
        message begins with. Raises UserError if the template refuses the messages, or leaves the images out."""
        what = f"a prompt with the roles {', '.join(message['role'] for message in messages)}"
        if not images:
            return self._prompt_ids(messages, what)
        last = messages[-1]
        seen = self._prompt_ids([*messages[:-1], {**last, "content": _with_images(last["content"], images)}], what)
        if seen == self._prompt_ids([*messages[:-1], {**last, "content": _with_images(last["content"], 0)}], what):
            raise UserError(f"{what}: the chat template leaves out its images, expected that of a model that sees")
        return seen

    def prompt_text(self, messages: Sequence[Mapping[str, str]]) -> str:
        """The prompt as the template writes it, special tokens included. Raises UserError if the template refuses it."""
        return self._apply(messages, "a prompt", tokenize=False)

    def demonstration(self, example: Example) -> TokenSequence:
        """Prompt, demonstration and end token, trained on from the first token after the prompt.

        The response is tokenised by itself and not together with the prompt, as what a policy writes after it is. One that is
        too long is cut, and then has no end token: the policy must not learn to stop there. The masks come from lengths, so a
        pad token that equals the end token does no harm. Thoughts that the template opens are left out of the response
        beforehand (data/thoughts.py).
        """
        assert example.demonstration is not None, example.id
        prompt = self._prompt_ids(example.messages, example.id)
        tokens, trained = self.turns(example.demonstration)
        self.num_demonstrations += 1
        if self._max_demonstration_tokens is not None and len(tokens) > self._max_demonstration_tokens:
            self.num_truncated += 1
            tokens, trained = tokens[: self._max_demonstration_tokens], trained[: self._max_demonstration_tokens]
        return TokenSequence(tokens=(*prompt, *tokens), trained=(*[False] * len(prompt), *trained))

    def turns(self, demonstration: str | tuple[str, ...]) -> tuple[list[int], list[bool]]:
        """What a demonstration adds to its prompt: ids, and which of them are trained on. Each response is followed by the end
        token, the user's messages between them are context."""
        tokens: list[int] = []
        trained: list[bool] = []
        for i, text in enumerate((demonstration,) if isinstance(demonstration, str) else demonstration):
            own = i % 2 == 0
            new = [*self.encode(text), self.eos_token_id] if own else self.follow_up(text)
            tokens += new
            trained += [own] * len(new)
        return tokens, trained

    def follow_up(self, message: str, images: int = 0) -> list[int]:
        """Ids between a response's end token and the next response: the user's `message` as the template writes it, after
        placeholders for `images`.

        Taken from the text that the template makes of a conversation around it, after the response and its end token. Raises
        UserError if the template does not keep a response's text, so that its end cannot be found.
        """
        said = (("user", "a"), ("assistant", MARK), ("user", _with_images(message, images) if images else message))
        turns = [{"role": role, "content": content} for role, content in said]
        text = self._apply(turns, "a conversation", tokenize=False)
        _, found, rest = text.partition(MARK)
        if not found:
            raise UserError("a conversation: the chat template leaves out a response's text, expected it as it is")
        return self.encode(rest.removeprefix(self._tokenizer.eos_token))

    def encode(self, text: str) -> list[int]:
        """Token ids of `text` as it stands in the middle of a sequence."""
        return self._tokenizer(text, add_special_tokens=False)["input_ids"]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids`, special tokens and spaces as they are. An id without a token (vocabularies may have gaps) reads as
        U+FFFD, the replacement character."""
        pieces: list[list[int]] = [[]]
        for i in ids:
            if i in self._known_ids:
                pieces[-1].append(i)
            else:
                pieces.append([])
        options = {"skip_special_tokens": False, "clean_up_tokenization_spaces": False}
        return "\ufffd".join(self._tokenizer.decode(piece, **options) for piece in pieces)

    def response_text(self, ids: Sequence[int]) -> str:
        """What a response says, to graders and in rollouts/: the text of `ids` without the turn's framing at its beginning and
        end. Of special tokens that is the end tokens, pad, bos, and what the template ends a turn with; all others are the
        policy's words ("</think>"), and so is framing in the middle of them: an answer is not to be read as if it were not
        there."""
        start, end = 0, len(ids)
        while start < end and ids[start] in self._framing:
            start += 1
        for i in reversed(range(start, end)):
            if ids[i] in self._framing:
                end = i
            elif self.decode(ids[i : i + 1]).strip():
                break  # a blank may stand between two tokens of the framing, such as the template's and the tokenizer's
        return self.decode(ids[start:end])

    @cached_property
    def _known_ids(self) -> frozenset[int]:
        return frozenset(self._tokenizer.get_vocab().values())

    @cached_property
    def _framing(self) -> frozenset[int]:
        tokenizer = self._tokenizer
        found = {tokenizer.pad_token_id, tokenizer.bos_token_id, *self.end_token_ids, *self._end_of_turn()}
        return frozenset(found - {None, tokenizer.unk_token_id})  # as pad token, <unk> still is what the policy wrote

    def _end_of_turn(self) -> list[int]:
        """What the template writes right after a response, if that is a special token."""
        try:
            ids = self.follow_up("a")[:1]
        except UserError:  # the template takes no second turn
            return []
        return ids if ids and self._tokenizer.decode(ids, skip_special_tokens=True) == "" else []

    def _prompt_ids(self, messages: Sequence[Mapping[str, Any]], what: str) -> tuple[int, ...]:
        # What comes back by default differs between transformers 4 (ids) and 5 (a mapping), so it is asked for.
        ids = tuple(self._apply(messages, what, tokenize=True, return_dict=True)["input_ids"])
        if not ids:
            raise UserError(f"{what}: found an empty prompt, expected at least one token")
        return ids

    def _apply(self, messages: Sequence[Mapping[str, Any]], what: str, **how: bool) -> Any:
        """The messages and the start of a response, as the template writes them."""
        turns = [dict(message) for message in messages]
        try:
            return self._tokenizer.apply_chat_template(turns, add_generation_prompt=True, **how, **self._clock)
        except Exception as error:  # Jinja's own, and whatever an expression of the template comes to: a division by zero, say
            reason = " ".join(str(error).split()) or type(error).__name__
            raise UserError(f"{what}: the chat template refuses it: {reason}") from None


def _with_images(text: str, images: int) -> list[dict[str, str]]:
    """A message's content in parts, as templates of models that see read it."""
    return [*({"type": "image"} for _ in range(images)), {"type": "text", "text": text}]
