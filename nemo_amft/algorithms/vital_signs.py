"""Whether the policy is alive: what tells one bad gradient, which a step skips, from a policy that is lost.

A dead policy is not saved, replaces no checkpoint and is not exported. Its signs:

    log-probs that are no numbers        seen in loss/sft and in the entropies of a step
    an entropy outside [0, ln V]         no distribution over V tokens has one: the logits have overflowed
    weights grown tenfold                their norm over that of the last good checkpoint (of the start, before there is one)

The last cannot fire on a run that has merely learned something wrong. Adam moves a weight by about its learning rate a step,
at most: before weights of root mean square r are tenfold, rates have to add up to 9 r between two checkpoints, every weight
being driven in one direction. r is 0.02 to 0.05 in language models, and the paper's 500 steps at 1e-6 add up to 5e-4.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from nemo_amft.types import RunError

MAX_GROWTH = 10.0
"""Of the norm of all weights, since the last good checkpoint."""

TOLERANCE = 0.01
"""Share of ln V by which rounding may take an entropy out of its range."""


class DeadError(RunError):
    """The policy, or the critic, is lost."""


def check_step(metrics: Mapping[str, float], vocabulary: int) -> None:
    """Raises DeadError for a step's `metrics` that only a dead policy gives. What a step has not measured is not looked at."""
    most = math.log(vocabulary)
    for name in ("loss/sft", "entropy/sft", "entropy/rl"):
        value = metrics.get(name)
        if value is None:
            continue
        if not math.isfinite(value):
            raise DeadError(f"the policy's log-probs are no numbers ({name} is {value})")
        if name.startswith("entropy") and not -TOLERANCE * most <= value <= (1 + TOLERANCE) * most:
            expected = f"expected from 0 to ln {vocabulary} = {most:.2f}"
            raise DeadError(f"{name} is {value:.4g}, {expected}: the logits have overflowed")


def check_growth(norms: Mapping[str, float], before: Mapping[str, float]) -> None:
    """Raises DeadError where a model's norm is not finite, or MAX_GROWTH times what it was at the last good checkpoint."""
    for name, norm in norms.items():
        if not math.isfinite(norm):
            raise DeadError(f"weights of the {name} are no numbers")
        if name in before and norm > MAX_GROWTH * before[name]:
            raise DeadError(
                f"the weights of the {name} are {norm / before[name]:.3g} times as large as at the last good checkpoint (norm "
                f"{norm:.3g} after {before[name]:.3g}), expected less than {MAX_GROWTH:g} times"
            )
