"""Rollouts: prompts in, graded groups out, the same on every rank."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch.distributed as dist

from nemo_amft.algorithms.methods.base import Demonstration, Group, Sample
from nemo_amft.data.chat import ChatTemplate
from nemo_amft.observe.timers import PhaseTimers
from nemo_amft.parallel.groups import Place
from nemo_amft.rollout.seeds import sample_seed
from nemo_amft.tasks.rewards import RewardPool
from nemo_amft.types import Completion, Example, Request, RolloutEngine, SamplingParams, TokenSequence, Verdict


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
        """`samples` graded responses to each example. Seeds belong to (run seed, stream, step, prompt, sample), not to a
        rank."""
        prompts = [self._prompt(example) for example in examples]
        requests = [
            Request(prompt, sample_seed(self.run_seed, stream, step, p, s) if self.seed_per_sample else None)
            for p, prompt in enumerate(prompts)
            for s in range(samples)
        ]
        seed = sample_seed(self.run_seed, stream, step, 0, 0)
        sampling = SamplingParams(max_new_tokens, temperature, stop_token_ids=self.stop_token_ids, seed=seed, **params)
        with self.timers("rollout"):
            completions = self.engine.generate(requests, sampling)
        answers = [example.answer for example in examples for _ in range(samples)]
        prefixes = [example.response_prefix for example in examples for _ in range(samples)]
        texts = [prefix + self._text(c) for prefix, c in zip(prefixes, completions, strict=True)]
        with self.timers("reward"):
            verdicts = self._grade(answers, texts, [c.finished for c in completions])
        graded = [
            _sample(request.prompt_token_ids, completion, text, verdict)
            for request, completion, text, verdict in zip(requests, completions, texts, verdicts, strict=True)
        ]
        return [Group(e, tuple(graded[i * samples : (i + 1) * samples])) for i, e in enumerate(examples)]

    def demonstration(self, example: Example) -> Demonstration | None:
        """See `Tools`."""
        if example.demonstration is None:
            return None
        sequence = self.chat.demonstration(example)
        return Demonstration(example, sequence, sequence.tokens[-1] == self.chat.eos_token_id)

    def encode(self, text: str) -> list[int]:
        """See `Tools`."""
        return self.chat.encode(text)

    def fits(self, example: Example) -> bool:
        """See `Tools`."""
        return len(self._prompt(example)) <= self.max_prompt_tokens

    def grade(self, examples: Sequence[Example], texts: Sequence[str], finished: Sequence[bool]) -> list[Verdict]:
        """See `Tools`."""
        with self.timers("reward"):
            return self._grade([example.answer for example in examples], texts, finished)

    def _prompt(self, example: Example) -> tuple[int, ...]:
        return (*self.chat.prompt_ids(example.messages), *self.chat.encode(example.response_prefix))

    def _text(self, completion: Completion) -> str:
        ids = completion.token_ids
        return self.chat.decode(ids[:-1] if completion.finished and ids and ids[-1] in self.stop_token_ids else ids)

    def _grade(self, answers: Sequence[str], texts: Sequence[str], finished: Sequence[bool]) -> list[Verdict]:
        """Each node grades its slice in its own processes; all ranks get all verdicts, in order."""
        nodes = self.place.world_size // self.ranks_per_node
        mine: list[tuple] = []
        if self.rewards is not None:
            node = self.place.rank // self.ranks_per_node
            cut = slice(len(answers) * node // nodes, len(answers) * (node + 1) // nodes)
            graded = self.rewards.score(list(zip(answers[cut], texts[cut], finished[cut], strict=True)))
            mine = [(v.reward, v.correct, v.status, v.detail) for v in graded]
        everyone: list = [None] * self.place.world_size
        dist.all_gather_object(everyone, mine)
        return [Verdict(*fields) for part in everyone for fields in part]


def _sample(prompt: Sequence[int], completion: Completion, text: str, verdict: Verdict) -> Sample:
    n = len(completion.token_ids)
    sequence = TokenSequence(
        tokens=(*prompt, *completion.token_ids),
        trained=(*[False] * len(prompt), *[True] * n),
        behavior_log_probs=(*[0.0] * len(prompt), *completion.log_probs),
    )
    return Sample(sequence, text, verdict, completion.finished, n)


def rollout_metrics(groups: Sequence[Group]) -> dict[str, float]:
    """What a batch of rollouts looks like: rewards, failures of grading, lengths. Nothing of no rollouts."""
    if not groups:
        return {}
    samples = [sample for group in groups for sample in group.samples]
    n = max(len(samples), 1)
    solved = [sum(s.verdict.correct for s in group.samples) / len(group.samples) for group in groups]
    return {
        "reward/mean": sum(s.verdict.reward for s in samples) / n,
        "reward/correct": sum(s.verdict.correct for s in samples) / n,
        "reward/timeout": float(sum(s.verdict.status == "timeout" for s in samples)),
        "reward/error": float(sum(s.verdict.status == "error" for s in samples)),
        "reward/groups_all_correct": sum(x == 1.0 for x in solved) / max(len(solved), 1),
        "reward/groups_none_correct": sum(x == 0.0 for x in solved) / max(len(solved), 1),
        "response_length/mean": sum(s.num_tokens for s in samples) / n,
        "response_length/max": float(max((s.num_tokens for s in samples), default=0)),
        "truncated_fraction": sum(not s.finished for s in samples) / n,
    }
