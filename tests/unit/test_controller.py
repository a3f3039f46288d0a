"""AMFT's controller: Eq. 6, its bounds, signs, edge cases and state."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from nemo_amft.algorithms.controllers.amft import AMFTController, AMFTControllerConfig, MetaGradientConfig
from nemo_amft.algorithms.controllers.base import Observation
from nemo_amft.types import MetaGradient

CONFIG = AMFTControllerConfig(mu_init=0.5, mu_min=0.1, mu_max=0.9, eta_mu=0.2, eta_h=0.3, meta_every=4)


def _seen(step: int = 4, g_mu: float | None = None, entropy: float | None = 1.0, target: float | None = 1.5) -> Observation:
    meta = None if g_mu is None else MetaGradient(g_mu, 0.0, 1.0, 1.0)
    metrics = {} if entropy is None else {"entropy/sft": entropy}
    return Observation(step, metrics, target, meta)


def test_mu_moves_by_both_terms_of_equation_6():
    controller = AMFTController(CONFIG)
    weights = controller.update(_seen(g_mu=-0.5))
    mu = 0.5 + 0.2 * -0.5 + 0.3 * (1.5 - 1.0)
    assert weights == pytest.approx({"sft": mu, "rl": 1 - mu})
    assert controller.metrics()["mu/meta_term"] == pytest.approx(-0.1)
    assert controller.metrics()["mu/entropy_term"] == pytest.approx(0.15)


def test_entropy_sign_turns_the_entropy_term_round():
    up, down = (AMFTController(replace(CONFIG, entropy_sign=sign)) for sign in (1, -1))
    up.update(_seen()), down.update(_seen())
    assert up.mu - 0.5 == pytest.approx(0.5 - down.mu)
    assert up.mu > 0.5


@pytest.mark.parametrize(("g_mu", "bound"), [(100.0, 0.9), (-100.0, 0.1)])
def test_mu_stops_at_its_bounds_and_leaves_them_again(g_mu, bound):
    controller = AMFTController(CONFIG)
    controller.update(_seen(g_mu=g_mu, entropy=1.5))
    assert controller.mu == bound
    controller.update(_seen(g_mu=-math.copysign(0.5, g_mu), entropy=1.5))
    assert controller.mu == pytest.approx(bound - math.copysign(0.1, g_mu))


def test_meta_updates_come_every_k_steps_but_never_at_the_first():
    controller = AMFTController(CONFIG)
    assert [t for t in range(13) if controller.wants_meta_gradient(t)] == [4, 8, 12]
    assert [t for t in range(13) if controller.wants_difference(t)] == [3, 7, 11]


def test_with_k_1_every_step_but_the_first_is_a_meta_update():
    controller = AMFTController(replace(CONFIG, meta_every=1))
    assert [controller.wants_meta_gradient(t) for t in range(4)] == [False, True, True, True]
    assert all(controller.wants_difference(t) for t in range(4))


def test_a_trace_wants_the_difference_of_every_step():
    controller = AMFTController(replace(CONFIG, meta_gradient=MetaGradientConfig(trace_decay=0.9)))
    assert all(controller.wants_difference(t) for t in range(8))


def test_without_meta_gradient_nothing_is_asked_for():
    controller = AMFTController(replace(CONFIG, eta_mu=0.0))
    assert not any(controller.wants_difference(t) or controller.wants_meta_gradient(t) for t in range(20))
    controller.update(_seen())
    assert controller.metrics()["mu/missed"] == 0.0


def test_without_entropy_term_mu_moves_by_the_meta_gradient_alone():
    controller = AMFTController(replace(CONFIG, eta_h=0.0))
    controller.update(_seen(g_mu=0.5))
    assert controller.mu == pytest.approx(0.6)


@pytest.mark.parametrize("g_mu", [math.nan, math.inf, -math.inf])
def test_a_non_finite_meta_gradient_is_skipped_and_counted(g_mu):
    controller = AMFTController(CONFIG)
    controller.update(_seen(g_mu=g_mu, entropy=1.5))
    assert controller.mu == 0.5
    assert controller.metrics()["mu/skipped"] == 1.0


def test_a_meta_update_without_a_kept_difference_is_counted():
    controller = AMFTController(CONFIG)
    controller.update(_seen(step=4, g_mu=None, entropy=1.5))
    assert (controller.mu, controller.metrics()["mu/missed"]) == (0.5, 1.0)


@pytest.mark.parametrize("seen", [_seen(entropy=None), _seen(entropy=math.nan), _seen(target=None)])
def test_a_batch_without_entropy_moves_nothing(seen):
    controller = AMFTController(CONFIG)
    controller.update(seen)
    assert controller.mu == 0.5


def test_target_entropy_zero_is_a_target():
    controller = AMFTController(CONFIG)
    controller.update(_seen(target=0.0))
    assert controller.mu == pytest.approx(0.5 - 0.3)


def test_state_survives_and_decides_the_next_update():
    first = AMFTController(CONFIG)
    first.update(_seen(g_mu=0.3))
    second = AMFTController(CONFIG)
    second.load_state_dict(first.state_dict())
    assert second.update(_seen(g_mu=-0.2)) == first.update(_seen(g_mu=-0.2))
