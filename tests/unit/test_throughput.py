"""Model FLOPs utilisation of a step whose FLOPs are counted by hand."""

from __future__ import annotations

import pytest

from nemo_amft.algorithms.losses import SFTLoss
from nemo_amft.algorithms.methods.base import Group, Sample, Term
from nemo_amft.algorithms.throughput import Throughput
from nemo_amft.config.architecture import Architecture
from nemo_amft.data.batching import Batch
from nemo_amft.observe import timers
from nemo_amft.types import Example, TokenSequence, Verdict

SHAPE = Architecture("llama", 8, 16, 2, 2, 1, 32, True, 64, 4)
LAYER = 8 * (8 + 2 * 4 + 8 + 3 * 16)
"""Matrix parameters of a layer: query 8 x 8, key and value 8 x 4 each, output 8 x 8, three of 8 x 16."""


def forward(positions: int, trained: int, output: bool = True) -> int:
    """2 FLOPs a matrix parameter and token; scores and values of width 8 over half the square; 32 logits a trained token."""
    return 2 * (2 * LAYER * positions + 2 * 2 * 8 * positions**2 // 2) + 2 * 32 * 8 * trained * output


@pytest.fixture
def clock(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(timers.time, "perf_counter", lambda: now[0])
    return now


def spend(phases, clock, **seconds):
    for phase, length in seconds.items():
        with phases(phase):
            clock[0] += length


def sequence(prompt: int, response: int) -> TokenSequence:
    return TokenSequence(tuple(range(prompt + response)), tuple(i >= prompt for i in range(prompt + response)))


def test_utilisation_of_training_and_of_the_whole_step(clock):
    phases = timers.PhaseTimers()
    spend(phases, clock, rollout=3.0, sft=1.0, rl=2.0, critic=1.0, checkpoint=50.0)
    demonstration, rollout = sequence(3, 4), sequence(2, 5)
    terms = [
        Term("sft", Batch.whole([demonstration]), SFTLoss()),
        Term("rl", Batch.whole([rollout]), SFTLoss(), needs=frozenset({"value", "reference_log_prob"})),
    ]
    group = Group(Example("0", (), ""), (Sample(rollout, "", Verdict(1.0, True), True, 5),))
    found = Throughput(SHAPE, 1e6, 2, phases).step([group], terms)

    policy = 3 * forward(6, 4) + 3 * forward(6, 5)
    critic = forward(6, 0, False) + 3 * forward(6, 0, False)
    reference = forward(6, 5)
    training = policy + critic + reference
    assert found["perf/mfu"] == pytest.approx(training / 4.0 / (2 * 1e6))
    assert found["perf/training_tflops"] == pytest.approx(training / 4.0 / 2 / 1e12)
    # Prompt and response are read once, but for the response's last token; each of its tokens needed logits.
    assert found["perf/mfu_step"] == pytest.approx((training + forward(6, 5)) / 7.0 / (2 * 1e6))
    assert found["tokens_per_second/training"] == pytest.approx((7 + 7) / 4.0)
    assert found["tokens_per_second/generation"] == pytest.approx(5 / 3.0)


def test_a_model_of_unknown_shape_has_rates_but_no_utilisation(clock):
    phases = timers.PhaseTimers()
    spend(phases, clock, sft=2.0)
    found = Throughput(None, 1e6, 1, phases).step([], [Term("sft", Batch.whole([sequence(1, 3)]), SFTLoss())])
    assert found["tokens_per_second/training"] == 2.0
    assert not any(name.startswith("perf/") for name in found)


def test_a_terms_own_phase_counts_as_training(clock):
    phases = timers.PhaseTimers()
    spend(phases, clock, rl=1.0, demonstration=3.0)
    terms = [Term(name, Batch.whole([sequence(1, 3)]), SFTLoss()) for name in ("rl", "demonstration")]
    assert Throughput(None, 1e6, 1, phases).step([], terms)["tokens_per_second/training"] == 8 / 4.0
