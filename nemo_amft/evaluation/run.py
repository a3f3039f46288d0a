"""Draws what is missing of every benchmark's answers, grades it, writes it down; then the scores."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemo_amft.config.schema import Config
from nemo_amft.data.golds import for_grader, split_golds
from nemo_amft.evaluation import results
from nemo_amft.evaluation.answers import Answers, Place, chunks, places
from nemo_amft.evaluation.problems import ProblemSet
from nemo_amft.rollout.seeds import sample_seed
from nemo_amft.tasks.math.graders import BenchmarkVerifier
from nemo_amft.tasks.math.task import MathConfig
from nemo_amft.types import Example, Request, SamplingParams, UserError, Verdict

if TYPE_CHECKING:
    from nemo_amft.algorithms.sampling import Sampler

Row = dict[str, Any]


class BenchmarkTask:
    """What grades benchmarks, in the place of a training task."""

    def __init__(self, thinking: bool) -> None:
        self._thinking = thinking

    def verifier(self) -> BenchmarkVerifier:
        """See Task."""
        return BenchmarkVerifier(self._thinking)


def mathematics(config: Config) -> MathConfig:
    """The settings of prompts and grading that benchmarks share with training. Raises UserError for another task."""
    if not isinstance(config.task.config, MathConfig):
        raise UserError(f"task: found {config.task.target}, expected task=math or task=math_plain with benchmarks")
    return config.task.config


@dataclass
class BenchmarkRun:
    """One model on several benchmarks. Every rank makes one and calls `complete`; rank 0 alone reads and writes files."""

    config: Config
    sampler: Sampler
    sets: Mapping[str, ProblemSet]
    run_dir: Path
    about: Mapping[str, Any]
    """Goes into evaluation.json as it is: the checkpoint's name and so on."""
    model: str
    """Fingerprint of the weights: answers of other weights in the same folder are refused."""
    leaked: Mapping[str, list[str]] | None
    stopped: Callable[[], str | None] = lambda: None
    """Why to stop, asked on all ranks between two chunks."""
    say: Callable[[str], None] = print

    def complete(self) -> bool:
        """Draw what is missing and write the scores of each benchmark as it is finished. False if asked to stop on the way."""
        finished: dict[str, Any] = {}
        for name, problems in self.sets.items():
            answers = self._open(problems) if self.sampler.place.is_main else None
            if not self._draw_missing(problems, answers):
                return False
            self._grade_missing(problems, answers)
            if answers is not None:
                seen = None if self.leaked is None else self.leaked[name]
                finished[name] = results.benchmark_result(problems, answers.rows, seen)
                table = results.write(self.run_dir, self._about(), finished)
                if len(finished) == len(self.sets):
                    self.say(f"\n{table}\nanswers: {self.run_dir / 'answers'}")
        return True

    # --- drawing ----------------------------------------------------------------------------------------------------------

    def _draw_missing(self, problems: ProblemSet, answers: Answers | None) -> bool:
        done = self._shared(set(answers.rows) if answers is not None else None)
        pieces = chunks(problems.samples, self.config.evaluation.chunk, done)
        total, left = sum(problems.samples), sum(map(len, pieces))
        for piece in pieces:
            reason = self.stopped()
            if reason is not None:
                self._tell(f"stopping, {reason}: the same command continues")
                return False
            rows = self._draw(problems, piece)
            left -= len(piece)
            if answers is not None:
                answers.append(rows)
            self._tell(f"{problems.title}: {total - left} of {total} answers")
        return True

    def _draw(self, problems: ProblemSet, places: Sequence[Place]) -> list[Row]:
        """Responses at these places, graded. The seed of each belongs to (run seed, benchmark, problem, sample) alone."""
        config, sampler = self.config, self.sampler
        examples = [problems.examples[index] for index, _ in places]
        prompts = {index: sampler.chat.prompt_ids(problems.examples[index].messages) for index in {i for i, _ in places}}
        stream = f"evaluation/{problems.name}"
        seeds = [sample_seed(config.trainer.seed, stream, 0, index, sample) for index, sample in places]
        requests = [Request(prompts[index], seed) for (index, _), seed in zip(places, seeds, strict=True)]
        e = config.evaluation
        params = SamplingParams(
            config.rollout.max_new_tokens,
            e.temperature,
            e.top_p,
            stop_token_ids=sampler.stop_token_ids,
            stop=sampler.stop,
            seed=config.trainer.seed,
        )
        with sampler.timers("rollout"):
            completions = sampler.engine.generate(requests, params)
        texts = [sampler.text(completion) for completion in completions]
        verdicts = self._grade(problems.graders, examples, texts, [c.finished for c in completions])
        return [
            {
                "id": example.id, "index": index, "sample": sample, "key": problems.keys[index], "seed": seed,
                "prompt": example.messages[-1]["content"], "gold": split_golds(example.answer), "response": text,
                "finished": completion.finished, "tokens": len(completion.token_ids), "verdicts": verdict,
            }
            for (index, sample), seed, example, completion, text, verdict in zip(
                places, seeds, examples, completions, texts, verdicts, strict=True
            )
        ]  # fmt: skip

    # --- grading ----------------------------------------------------------------------------------------------------------

    def _grade_missing(self, problems: ProblemSet, answers: Answers | None) -> None:
        """Verdicts of graders that were not asked for when the answers were drawn."""
        rows = [answers.rows[place] for place in places(problems.samples)] if answers is not None else None
        for grader in problems.graders:
            mine = None if rows is None else [row for row in rows if grader not in row["verdicts"]]
            items = self._shared(None if mine is None else [(row["index"], row["response"], row["finished"]) for row in mine])
            if not items:
                continue
            examples = [problems.examples[index] for index, _, _ in items]
            found = self._grade([grader], examples, [text for _, text, _ in items], [finished for _, _, finished in items])
            if answers is not None and mine is not None:
                for row, verdict in zip(mine, found, strict=True):
                    row["verdicts"] |= verdict
                answers.replace(mine)

    def _grade(
        self, graders: Sequence[str], examples: Sequence[Example], texts: Sequence[str], finished: Sequence[bool]
    ) -> list[dict[str, Row]]:
        """For each text, its verdict by each grader."""
        marked = [Example(e.id, e.messages, for_grader(grader, e.answer)) for grader in graders for e in examples]
        found = self.sampler.grade(marked, [[text] for text in texts] * len(graders), list(finished) * len(graders))
        n = len(texts)
        return [{g: _as_row(found[which * n + i]) for which, g in enumerate(graders)} for i in range(n)]

    # --- files ------------------------------------------------------------------------------------------------------------

    def _open(self, problems: ProblemSet) -> Answers:
        first = self.sampler.chat.prompt_ids(problems.examples[0].messages)
        settings = self._settings() | {
            "model": self.model,
            "seed": self.config.trainer.seed,
            "precision": self.config.trainer.precision,
            "thinking": self.about.get("thinking"),  # verdicts depend on it
            "first_prompt": f"{zlib.crc32(repr(tuple(first)).encode()):08x}",  # the chat template and the system message
        }
        return Answers(self.run_dir, problems.name, settings, problems.keys)

    def _settings(self) -> Row:
        e = self.config.evaluation
        limit = self.config.rollout.max_new_tokens
        found = {"temperature": e.temperature, "top_p": e.top_p, "max_new_tokens": limit}
        stops = {key: list(value) for key in ("stop_token_ids", "stop") if (value := getattr(self.config.rollout, key))}
        return found | stops

    def _about(self) -> Row:
        return {**self.about, "model": self.model, "seed": self.config.trainer.seed, **self._settings()}

    def _shared(self, value: Any) -> Any:
        """Rank 0's value on every rank."""
        import torch.distributed as dist

        found = [value]
        dist.broadcast_object_list(found, src=0)
        return found[0]

    def _tell(self, text: str) -> None:
        if self.sampler.place.is_main:
            self.say(text)


def refuse_long_prompts(sets: Mapping[str, ProblemSet], prompt_ids: Callable[[Any], Sequence[int]], limit: int) -> None:
    """Raises UserError for a prompt above data.max_prompt_tokens: leaving it out would be another benchmark."""
    for problems in sets.values():
        longest, example = max(((len(prompt_ids(e.messages)), e) for e in problems.examples), key=lambda found: found[0])
        if longest > limit:
            where = example.metadata.get("origin", example.id)
            raise UserError(f"data.max_prompt_tokens: found {limit}, expected at least {longest}, the length of {where}")


def _as_row(verdict: Verdict) -> Row:
    return {"correct": verdict.correct, "status": verdict.status, "detail": verdict.detail}
