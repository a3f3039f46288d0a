"""Rollouts: prompts in, graded groups out, the same on every rank."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import astuple, dataclass, field
from typing import TYPE_CHECKING

import torch.distributed as dist

from nemo_amft.algorithms.conversations import Conversation
from nemo_amft.algorithms.methods.base import Demonstration, Group
from nemo_amft.algorithms.vital_signs import DeadError
from nemo_amft.data.chat import ChatTemplate
from nemo_amft.observe.timers import PhaseTimers
from nemo_amft.parallel.groups import Place
from nemo_amft.rollout.seeds import sample_seed
from nemo_amft.tasks.base import Images
from nemo_amft.tasks.rewards import RewardPool
from nemo_amft.types import Completion, Example, RolloutEngine, SamplingParams, Verdict

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass
class Sampler:
    """Draws responses with the engine and has them graded. Every rank calls it, in the same order."""

    engine: RolloutEngine
    chat: ChatTemplate
    rewards: RewardPool | None
    """The node's pool of verifier processes, on the first rank of each node; None on the others."""
    place: Place
    ranks_per_node: int
    timers: PhaseTimers
    run_seed: int
    seed_per_sample: bool
    stop_token_ids: tuple[int, ...]
    max_prompt_tokens: int
    """Longest prompt, with its response_prefix, that the engine has room for beside the longest response."""
    max_response_tokens: int
    """Longest response, or conversation after the prompt."""
    several_turns: bool = False
    """The task has an environment in place of a verifier."""
    stop: tuple[str, ...] = ()
    """Strings that end a response."""
    images: Images | None = None
    """The images of an example, of a task that shows some: the first comes with the prompt."""
    _statuses: Counter[str] = field(default_factory=Counter)
    """Of the verdicts since `failures` was last asked."""

    def roll_out(
        self,
        stream: str,
        step: int,
        examples: Sequence[Example],
        samples: int,
        max_new_tokens: int,
        temperature: float,
        **params,
    ) -> list[Group]:
        """`samples` graded responses to each example, or episodes of several turns. Seeds belong to (run seed, stream, step,
        prompt, sample), and to the turn, not to a rank."""
        drawn = [
            Conversation(e, prompt, images=images, num_shown=0 if self.images is None else 1)
            for e in examples
            for prompt, images in [(self._prompt(e), self._images(e))]
            for _ in range(samples)
        ]
        live, turn = list(enumerate(drawn)), 0
        while live:
            name = stream if turn == 0 else f"{stream}/turn {turn}"
            requests = [
                c.request(sample_seed(self.run_seed, name, step, *divmod(i, samples)) if self.seed_per_sample else None)
                for i, c in live
            ]
            seed = sample_seed(self.run_seed, name, step, 0, 0)
            sampling = SamplingParams(
                max_new_tokens, temperature, stop_token_ids=self.stop_token_ids, stop=self.stop, seed=seed, **params
            )
            with self.timers("rollout"):
                completions = self.engine.generate(requests, sampling)
            refuse_no_numbers(completions, self.engine)
            for (_, conversation), completion in zip(live, completions, strict=True):
                prefix = "" if conversation.responses else conversation.example.response_prefix
                conversation.respond(completion, prefix + self.text(completion))
            episodes = [conversation for _, conversation in live]
            verdicts = self.grade(
                [c.example for c in episodes], [c.responses for c in episodes], [c.finished for c in episodes]
            )
            for conversation, verdict in zip(episodes, verdicts, strict=True):
                conversation.verdict = verdict
            live = [(i, c) for i, c in live if self._goes_on(c, max_new_tokens)]
            turn += 1
        graded = [conversation.sample() for conversation in drawn]
        return [Group(e, tuple(graded[i * samples : (i + 1) * samples])) for i, e in enumerate(examples)]

    def _goes_on(self, conversation: Conversation, max_new_tokens: int) -> bool:
        """Whether there is another turn; its message is added then."""
        message = conversation.verdict.follow_up
        if message is None:
            return False
        images = conversation.verdict.follow_up_images if self.images is not None else 0
        room = self.max_response_tokens - len(conversation.tokens) - max_new_tokens
        conversation.num_shown += images
        return conversation.go_on(message, self.chat.follow_up(message, images), self.chat.end_token_ids, room)

    def demonstration(self, example: Example) -> Demonstration | None:
        """See `Tools`."""
        if example.demonstration is None:
            return None
        truncated = self.chat.num_truncated
        sequence = self.chat.demonstration(example)
        return Demonstration(example, sequence, finished=self.chat.num_truncated == truncated)

    def encode(self, text: str) -> list[int]:
        """See `Tools`."""
        return self.chat.encode(text)

    def fits(self, example: Example) -> bool:
        """See `Tools`."""
        return len(self._prompt(example)) <= self.max_prompt_tokens

    def grade(self, examples: Sequence[Example], responses: Sequence[Sequence[str]], finished: Sequence[bool]) -> list[Verdict]:
        """See `Tools`. A verifier is shown the one response, an environment all of them."""
        assert not any(isinstance(turns, str) for turns in responses), "a sequence of responses for each example"
        shown = [list(turns) if self.several_turns else turns[-1] for turns in responses]
        with self.timers("reward"):
            verdicts = self._grade([example.answer for example in examples], shown, finished)
        self._statuses.update(verdict.status for verdict in verdicts)
        return verdicts

    def failures(self) -> dict[str, float]:
        """How often grading failed since the last call, whatever was graded: rollouts, demonstrations, a meta-update's
        rollouts. Nothing where nothing was graded."""
        found, self._statuses = self._statuses, Counter()
        return {f"reward/{status}": float(found[status]) for status in ("timeout", "error")} if found else {}

    def _prompt(self, example: Example) -> tuple[int, ...]:
        shown = 0 if self.images is None else 1
        return (*self.chat.prompt_ids(example.messages, shown), *self.chat.encode(example.response_prefix))

    def _images(self, example: Example) -> Sequence[Image]:
        return () if self.images is None else self.images(example)

    def text(self, completion: Completion) -> str:
        """What a response says."""
        return self.chat.response_text(completion.token_ids)

    def _grade(self, answers: Sequence[str], texts: Sequence[str | list[str]], finished: Sequence[bool]) -> list[Verdict]:
        """Each node grades its slice in its own processes; all ranks get all verdicts, in order."""
        nodes = self.place.world_size // self.ranks_per_node
        mine: list[tuple] = []
        if self.rewards is not None:
            node = self.place.rank // self.ranks_per_node
            cut = slice(len(answers) * node // nodes, len(answers) * (node + 1) // nodes)
            graded = self.rewards.score(list(zip(answers[cut], texts[cut], finished[cut], strict=True)))
            mine = [astuple(verdict) for verdict in graded]
        everyone: list = [None] * self.place.world_size
        dist.all_gather_object(everyone, mine)
        return [Verdict(*fields) for part in everyone for fields in part]


def refuse_no_numbers(completions: Sequence[Completion], engine: RolloutEngine) -> None:
    """Raises DeadError for responses whose log-probs are NaN: the tokens beside them mean nothing."""
    bad = sum(math.isnan(sum(completion.log_probs)) for completion in completions)
    if bad:
        raise DeadError(
            f"{type(engine).__name__}: the log-probs of {bad} of {len(completions)} responses are no numbers: the policy's "
            "logits are not finite"
        )


def rollout_metrics(groups: Sequence[Group], sources: Sequence[str] = ()) -> dict[str, float]:
    """What a batch of rollouts looks like: rewards, lengths; reward and accuracy of those `sources` that have a part in it.
    Nothing of no rollouts."""
    if not groups:
        return {}
    samples = [sample for group in groups for sample in group.samples]
    n = max(len(samples), 1)
    solved = [sum(s.verdict.correct for s in group.samples) / len(group.samples) for group in groups]
    return {
        "reward/mean": sum(s.verdict.reward for s in samples) / n,
        "reward/correct": sum(s.verdict.correct for s in samples) / n,
        "reward/groups_all_correct": sum(x == 1.0 for x in solved) / max(len(solved), 1),
        "reward/groups_none_correct": sum(x == 0.0 for x in solved) / max(len(solved), 1),
        "response_length/mean": sum(s.num_tokens for s in samples) / n,
        "response_length/max": float(max((s.num_tokens for s in samples), default=0)),
        "response_turns/mean": sum(s.num_turns for s in samples) / n,
        "truncated_fraction": sum(not s.finished for s in samples) / n,
        **_by_source(groups, sources),
    }


def _by_source(groups: Sequence[Group], sources: Sequence[str]) -> dict[str, float]:
    found = {}
    for source in sources:
        verdicts = [sample.verdict for group in groups if group.example.source == source for sample in group.samples]
        if verdicts:
            found[f"reward/{source}"] = sum(verdict.reward for verdict in verdicts) / len(verdicts)
            found[f"accuracy/{source}"] = sum(verdict.correct for verdict in verdicts) / len(verdicts)
    return found
