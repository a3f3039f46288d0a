"""A policy of VOCAB logits that gives every position the same distribution: small enough to write a method's loss down."""

from __future__ import annotations

import json
from collections.abc import Sequence

import torch
from torch import Tensor

from nemo_amft.algorithms.methods.base import Demonstration, Group, Sample, Term
from nemo_amft.config.load import load
from nemo_amft.data.batching import Cut, micro_batches
from nemo_amft.types import Example, TokenSequence, Totals, Verdict

VOCAB = 16
LONGEST = 7
"""longest_response: the constant divisor of Dr.GRPO's aggregation."""


class Tools:
    """What a method may ask of a run: one token a character, a demonstration is right where the example says so."""

    def __init__(self, run_seed: int = 1, max_prompt_tokens: int = 40):
        self.run_seed, self.max_prompt_tokens = run_seed, max_prompt_tokens

    def encode(self, text: str) -> list[int]:
        return [ord(character) % VOCAB for character in text]

    def prompt(self, example: Example) -> list[int]:
        return [1, *self.encode("".join(message["content"] for message in example.messages))]

    def fits(self, example: Example) -> bool:
        return len(self.prompt(example)) + len(example.response_prefix) <= self.max_prompt_tokens

    def demonstration(self, example: Example) -> Demonstration | None:
        if example.demonstration is None:
            return None
        return Demonstration(example, sequence(self.prompt(example), [*self.encode(example.demonstration), 2]))

    def grade(self, examples: Sequence[Example], responses: Sequence[Sequence[str]], finished: Sequence[bool]) -> list[Verdict]:
        right = [turns[-1].endswith(e.answer) for e, turns, _ in zip(examples, responses, finished, strict=True)]
        return [Verdict(float(r), r) for r in right]


def sequence(prompt: Sequence[int], response: Sequence[int]) -> TokenSequence:
    return TokenSequence(
        (*prompt, *response), (*[False] * len(prompt), *[True] * len(response)), (0.0,) * (len(prompt) + len(response))
    )


def example(name: str, demonstration: str | None = "3+4=7#7", answer: str = "7") -> Example:
    return Example(name, ({"role": "user", "content": f"{name}="},), answer, demonstration)


def group(of: Example, rewards: Sequence[float], correct: Sequence[bool] | None = None) -> Group:
    """Responses of different lengths and tokens, with these rewards."""
    tools, samples = Tools(), []
    prompt = [*tools.prompt(of), *tools.encode(of.response_prefix)]
    for i, reward in enumerate(rewards):
        g = torch.Generator().manual_seed(hash((i, len(of.id), ord(of.id[0]))) % 2**31)
        response = torch.randint(3, VOCAB, (2 + i % 3,), generator=g).tolist()
        right = reward > 0 if correct is None else correct[i]
        samples.append(Sample(sequence(prompt, response), "", Verdict(reward, right), True, len(response)))
    return Group(of, tuple(samples))


def three_groups(n: int = 4) -> list[Group]:
    """A prompt that no response solves, one that some do, one that all do."""
    return [
        group(example("none"), [0.0] * n),
        group(example("some"), [1.0, *[0.0] * (n - 2), 1.0]),
        group(example("all"), [1.0] * n),
    ]


def method_and_controller(name: str, *overrides: str):
    """As `method=name` composes them."""
    config = load(["--config-name", "quickstart", f"method={name}", *overrides], check=False)
    method = config.method.build(LONGEST)
    method.bind(Tools())
    return method, config.controller.build()


def theta(seed: int = 0) -> Tensor:
    return torch.randn(VOCAB, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).requires_grad_()


def total_loss(terms: Sequence[Term], logits: Tensor, weights: dict[str, float], reference: Tensor | None = None) -> Tensor:
    """The weighted sum of the terms' losses, through the program's own batching."""
    total = torch.zeros((), dtype=torch.float64)
    log_p = torch.log_softmax(logits, -1)
    entropy = -(log_p.exp() * log_p).sum()
    for term in terms:
        if "reference_log_prob" in term.needs:
            table = torch.log_softmax(reference, -1)
            term.batch.per_token["reference_log_prob"] = [table[torch.tensor(s.tokens)] for s in term.batch.sequences]
        totals = Totals(term.batch.total_tokens, term.batch.total_sequences)
        for micro in micro_batches(term.batch, Cut(size=5), torch.device("cpu")):
            extras = {name: values.double() for name, values in micro.extras.items()}
            log_prob = torch.where(micro.mask, log_p[micro.labels], 0.0)
            loss, _ = term.loss(log_prob, entropy.expand_as(log_prob), micro.mask, extras, totals)
            total = total + weights.get(term.name, 1.0) * term.weight * loss
    return total


def log_probs(row: TokenSequence, logits: Tensor) -> list[Tensor]:
    """Of the trained tokens, for references to be written with."""
    log_p = torch.log_softmax(logits, -1)
    return [log_p[t] for t, trained in zip(row.tokens, row.trained, strict=True) if trained]


def as_json(state: dict) -> dict:
    """What a checkpoint gives back."""
    return json.loads(json.dumps(state))
