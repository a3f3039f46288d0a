"""Weights that depend on the step alone, or on nothing."""

from __future__ import annotations

import math

import pytest

from nemo_amft.algorithms.controllers.base import Observation
from nemo_amft.algorithms.controllers.fixed import Fixed, FixedConfig
from nemo_amft.algorithms.controllers.schedule import Schedule, ScheduleConfig
from tests.unit.toy_policy import as_json


def test_chords_mu_falls_along_a_cosine():
    schedule = Schedule(ScheduleConfig(peak=0.9, valley=0.05, fall_steps=200))
    mu = [schedule.update(Observation(t, {}))["sft"] for t in (0, 50, 100, 150, 200, 999)]
    quarter = 0.05 + 0.85 * (1 + math.sqrt(0.5)) / 2
    assert mu == pytest.approx([0.9, quarter, 0.475, 0.95 - quarter, 0.05, 0.05])


def test_chords_other_example_rises_first():
    schedule = Schedule(ScheduleConfig(peak=0.5, valley=0.02, rise_steps=200, fall_steps=400))
    assert [schedule.at(t) for t in (0, 100, 200, 400, 600)] == pytest.approx([0.0, 0.25, 0.5, 0.26, 0.02])


def test_the_two_weights_make_one_and_mu_is_logged_and_restored():
    schedule = Schedule(ScheduleConfig())
    weights = schedule.update(Observation(30, {}))
    assert sum(weights.values()) == 1.0
    assert schedule.metrics() == {"mu": weights["sft"]}
    again = Schedule(ScheduleConfig())
    again.load_state_dict(as_json(schedule.state_dict()))
    assert again.mu == schedule.mu


def test_fixed_weighs_nothing_or_by_a_constant():
    assert Fixed(FixedConfig()).update(Observation(3, {})) == {}
    assert Fixed(FixedConfig()).metrics() == {}
    constant = Fixed(FixedConfig(mu=0.25))
    assert constant.update(Observation(3, {})) == {"sft": 0.25, "rl": 0.75}
    assert constant.metrics() == {"mu": 0.25}
