"""The few types that every part of the program shares.

Shapes: B sequences, T tokens, V vocabulary, N samples a prompt.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor


class UserError(ValueError):
    """A mistake in what the user gave: reported as one line, exit status 2, without a traceback."""

    def __init__(self, message: object = "") -> None:
        super().__init__(" ".join(str(message).splitlines()))  # it may quote what is of several


class RunError(RuntimeError):
    """What ends a run that nobody's input and no mistake of the program's is to blame for: reported as one line, exit status 1,
    without a traceback."""


@dataclass(frozen=True)
class Example:
    """One problem. `answer` is what the task's verifier compares with, "" for what is imitated only; `demonstration` is an
    expert's response, if there is one."""

    id: str
    messages: tuple[Mapping[str, str], ...]
    answer: str
    demonstration: str | tuple[str, ...] | None = None
    """A tuple holds several turns: the expert's response, the user's next message, a response, ... ending with a response."""
    source: str = ""
    response_prefix: str = ""
    """How the response begins (a hint): given to the policy after the prompt, graded with what it adds, not trained on."""
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Verdict:
    """What a verifier says of one response. `reward` trains; `correct` counts as accuracy."""

    reward: float
    correct: bool
    status: Literal["ok", "timeout", "error"] = "ok"
    detail: str = ""
    follow_up: str | None = None
    """The user's next message in a task with several turns; None ends the episode."""
    numbers: Mapping[str, float] = field(default_factory=dict)
    """What else a task measures, such as the share of right steps; evaluations show the mean over responses."""
    follow_up_images: int = 0
    """How many more of the example's images come with the follow_up, where the task shows images."""


@dataclass(frozen=True)
class TokenSequence:
    """Token ids with the positions that are trained on.

    `tokens` holds T ids; `trained[i]` says whether token i is a target (a token the policy wrote, or a demonstration's token).
    Token 0 is never a target. `behavior_log_probs[i]` is the sampling engine's log-prob of token i where trained, else 0.
    """

    tokens: tuple[int, ...]
    trained: tuple[bool, ...]
    behavior_log_probs: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        assert len(self.tokens) == len(self.trained) > 0, (len(self.tokens), len(self.trained))
        assert not self.trained[0], "the first token has no context to be predicted from"
        assert self.behavior_log_probs is None or len(self.behavior_log_probs) == len(self.tokens)

    @property
    def num_trained(self) -> int:
        return sum(self.trained)


@dataclass(frozen=True)
class SamplingParams:
    """How responses are drawn. temperature 0 is greedy."""

    max_new_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    stop_token_ids: tuple[int, ...] = ()
    stop: tuple[str, ...] = ()
    """Texts that end a response once it holds them."""
    seed: int = 0
    """Of the requests that bring no seed of their own, all together."""


@dataclass(frozen=True)
class Request:
    """One response to draw. `seed` fixes its random numbers whatever the layout; None: they follow from the batch's seed."""

    prompt_token_ids: tuple[int, ...]
    seed: int | None = None
    images: tuple[Image, ...] = ()
    """In the order of their placeholders, one each, in the prompt; the engine makes them as many tokens as the model wants."""


@dataclass(frozen=True)
class Completion:
    """One response. `log_probs[i]` is the log-prob of token i under the distribution it was sampled from, before
    top-p/top-k."""

    token_ids: tuple[int, ...]
    log_probs: tuple[float, ...]
    finished: bool
    """True if a stop token or a stop string ended it (the last id is the stop token, or the one that completes the string);
    False if it ran into the length limit."""


class RolloutEngine(Protocol):
    """What draws responses. Every rank of the job calls every method, in the same order (SPMD)."""

    def generate(self, requests: Sequence[Request], params: SamplingParams) -> list[Completion]:
        """Draw one completion a request, in order. `requests` is the same list on every rank, and so is the result."""
        ...

    def update_weights(self) -> None:
        """Take over the policy's current weights, in place, and forget every cached prefix."""
        ...

    def wake(self) -> None:
        """Get ready to generate (allocate the cache, put weights back on the device)."""
        ...

    def sleep(self) -> None:
        """Give device memory back to training."""
        ...

    def close(self) -> None:
        """End the engine, while the process groups it runs on still exist."""
        ...


class Totals(NamedTuple):
    """Counts of a global batch: the denominators of its losses."""

    tokens: int
    """Trained tokens."""
    sequences: int
    """Sequences with a trained token."""


Metrics = dict[str, tuple["Tensor", "Tensor"]]
"""name -> (sum, count), both 0-dimensional and detached."""
LossAndMetrics = tuple["Tensor", Metrics]


class TokenLoss(Protocol):
    """A loss over a policy's log-probs and entropies of tokens, each [B, S]; position i predicts token i + 1."""

    @property
    def metrics(self) -> Sequence[str]:
        """Names of the metrics it returns, known beforehand: ranks that see no output need them."""
        ...

    @property
    def entropy_gradient(self) -> bool:
        """Whether the loss is differentiated through the entropies; they are constants to it otherwise."""
        ...

    def __call__(
        self, log_prob: Tensor, entropy: Tensor, mask: Tensor, extras: Mapping[str, Tensor], totals: Totals
    ) -> LossAndMetrics: ...


class CriticLoss(Protocol):
    """A loss over a critic's values [B, S]."""

    @property
    def metrics(self) -> Sequence[str]: ...

    def __call__(self, value: Tensor, mask: Tensor, extras: Mapping[str, Tensor], totals: Totals) -> LossAndMetrics: ...


@dataclass(frozen=True)
class MetaGradient:
    """One estimate of dU/dmu (paper, Eq. 25)."""

    value: float
    """g_mu, in the chosen scale."""
    dot: float
    """<grad U, direction>, where direction is what was kept of the step before: g_SFT - g_RL, or its preconditioned form."""
    grad_u_norm: float
    direction_norm: float

    @property
    def finite(self) -> bool:
        return math.isfinite(self.value)
