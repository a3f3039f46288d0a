"""The examples of a run: read, kept apart, fitted to template and limits. What can be wrong with them is found here, before a
model is built."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain

from nemo_amft.algorithms.methods.base import Method
from nemo_amft.config.data_rules import imitating
from nemo_amft.config.rules import lookup
from nemo_amft.config.schema import Config
from nemo_amft.data import mixture
from nemo_amft.data.chat import ChatTemplate
from nemo_amft.data.filtering import drop_long_prompts, refuse_truncation
from nemo_amft.data.golds import for_grader
from nemo_amft.data.splits import drop_overlap
from nemo_amft.data.streams import Stream, some_of, stream_of
from nemo_amft.data.thoughts import check_thinking, fit_thoughts, thoughts_of
from nemo_amft.evaluation.leakage import leaked
from nemo_amft.evaluation.problems import load_benchmarks, wanted
from nemo_amft.evaluation.run import mathematics, refuse_long_prompts
from nemo_amft.tasks.base import TAKEN_NAMES, Task, evaluation_sets, images_of, prompted
from nemo_amft.types import Example, UserError


@dataclass(frozen=True)
class RunData:
    """The examples of a run, fitted to the limits of the config."""

    prompts: list[Example]
    """Problems to roll out."""
    demonstrations: list[Example]
    """D_SFT: data.demonstrations, or the prompts that have one."""
    validation: list[Example]
    test: list[Example]
    evaluation_sets: dict[str, list[Example]] = field(default_factory=dict)
    """The task's problems out of distribution, by name."""
    benchmarks: dict[str, list[Example]] = field(default_factory=dict)
    """Published sets to watch during training, by name; their answers say who grades them."""
    prompt_weights: Mapping[str, float] = field(default_factory=dict)
    """Of the prompts' sources (`Example.source`), if they are a mixture."""
    demonstration_weights: Mapping[str, float] = field(default_factory=dict)
    """The same of D_SFT."""

    @property
    def prompt_sources(self) -> tuple[str, ...]:
        """The prompts' sources, where there are several to be told apart in metrics."""
        return tuple(self.prompt_weights) if len(self.prompt_weights) > 1 else ()

    @property
    def demonstration_sources(self) -> tuple[str, ...]:
        """D_SFT's sources, where there are several to be told apart in metrics."""
        return tuple(self.demonstration_weights) if len(self.demonstration_weights) > 1 else ()

    def some_prompts(self, n: int) -> list[Example]:
        """`n` prompts that stand for all, the same in each call; fewer where there are fewer."""
        return some_of(self.prompts, self.prompt_weights, n)

    def some_demonstrations(self, n: int) -> list[Example]:
        """The same of D_SFT."""
        return some_of(self.demonstrations, self.demonstration_weights, n)

    def streams(self, method: Method, seed: int) -> dict[str, Stream]:
        """prompts, meta (D_val, for grad U), and demonstrations (D_SFT), where there are some. Raises UserError for an empty
        one."""
        prompts, weights = self.prompts, self.prompt_weights
        if method.needs_demonstrations:
            prompts, weights = demonstrated(prompts, weights)
        streams = {
            "prompts": stream_of(prompts, weights, seed, "prompts"),
            "meta": stream_of(self.validation, {}, seed, "meta"),
        }
        if self.demonstrations:
            streams["demonstrations"] = stream_of(self.demonstrations, self.demonstration_weights, seed, "demonstrations")
        return streams


def load_data(config: Config, task: Task, chat: ChatTemplate) -> RunData:
    """Problems and demonstrations of all splits, checked against template and limits. Raises UserError."""
    limits, imitated_by = config.data, imitating(config)
    prompts, validation, test = (
        drop_long_prompts(task.examples(split), chat, limits.max_prompt_tokens, f"data.{split}")
        for split in ("train", "validation", "test")
    )
    others = {
        name: drop_long_prompts(examples, chat, limits.max_prompt_tokens, f"evaluation set {name}")
        for name, examples in evaluation_sets(task).items()
    }
    if images_of(task, prompts) is not None:
        raise UserError("task: found images, expected text: a policy that sees cannot be trained here (it can be evaluated)")
    weights = mixture.weights_of(limits.train)
    mixture.refuse_empty("data.train", weights, prompts)
    thinking, thoughts = lookup(config, "task.thinking"), thoughts_of(chat, prompts)
    check_thinking(thinking, thoughts)
    if limits.demonstrations is None:
        prompts = fit_thoughts(prompts, thinking, thoughts) if imitated_by else prompts
        demonstrations, of_sources = demonstrated(prompts, weights)
    else:
        demonstrations, of_sources = load_demonstrations(config, task, chat, chain(*others.values()))
        demonstrations = fit_thoughts(demonstrations, thinking, thoughts)
    if imitated_by:
        if not demonstrations:
            raise UserError(f"data.train: found no example with a demonstration, expected at least one for {imitated_by}")
        refuse_truncation(demonstrations, chat, limits.max_demonstration_tokens, limits.max_truncated_fraction)
    validation = mixture.spread(validation) if weights else validation
    watched = load_watched(config, chat, others)
    return RunData(prompts, demonstrations, validation, test or validation, others, watched, weights, of_sources)


def demonstrated(examples: Sequence[Example], weights: Mapping[str, float]) -> tuple[list[Example], dict[str, float]]:
    """Those of the examples that have a demonstration, and the weights of the sources that these are of."""
    found = [example for example in examples if example.demonstration is not None]
    return found, mixture.left_of(weights, found)


def load_demonstrations(
    config: Config, task: Task, chat: ChatTemplate, others: Iterable[Example]
) -> tuple[list[Example], dict[str, float]]:
    """D_SFT from data.demonstrations, without the problems that the policy is validated or tested on (`others` too), and the
    weights of its sources. Raises UserError."""
    key, sources = "data.demonstrations", config.data.demonstrations
    found = prompted(task, mixture.load_mixture(sources, "train", "demonstration"))
    found = drop_overlap(key, found, chain(task.examples("validation"), task.examples("test"), others))
    found = drop_long_prompts(found, chat, config.data.max_prompt_tokens, key)
    weights = mixture.weights_of(sources)
    mixture.refuse_empty(key, weights, found)
    return found, weights


def load_watched(config: Config, chat: ChatTemplate, taken: Mapping[str, object]) -> dict[str, list[Example]]:
    """The benchmarks to evaluate during training, each answer with the name of its grader; nothing is trained on them, and
    problems that the training data has too are pointed out. Raises UserError, for a name that an evaluation set has as well."""
    chosen = wanted(config.benchmarks)
    if not chosen:
        return {}
    sets = load_benchmarks(chosen, config.evaluation, mathematics(config))
    refuse_long_prompts(sets, chat.prompt_ids, config.data.max_prompt_tokens)
    leaked(config.data, sets, config.evaluation.check_training)
    for name in sorted(sets.keys() & {*TAKEN_NAMES, *taken}):
        raise UserError(f"benchmarks.{name}: found the name {name!r}, expected one that no split has")
    return {
        name: [replace(example, answer=for_grader(problems.graders[0], example.answer)) for example in problems.examples]
        for name, problems in sets.items()
    }
