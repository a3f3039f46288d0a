"""A run's picture has the panels that its metrics can fill, and says the numbers."""

import math

import pytest
from matplotlib.image import imread

from nemo_amft.observe.figures import comparison, dynamics, ends, mu_of_runs, series, smoothed


def _records(steps=30, mu=True):
    records = [{"phase": "warmup", "step": w, "loss/sft": 2.0, "entropy": 9.0} for w in range(3)]
    records.append({"phase": "validation", "step": 0, "validation/accuracy": 0.2, "test/accuracy": 0.25})
    for t in range(steps):
        record = {"phase": "train", "step": t, "entropy": 0.5, "entropy/target": 0.6, "reward/mean": t / steps}
        controller = {"mu": 0.5 + 0.01 * (t + 1), "mu/meta_term": 0.004, "mu/entropy_term": 0.006}
        records.append(record | (controller if mu else {}))
    records.append({"phase": "validation", "step": steps, "validation/accuracy": 0.7, "test/accuracy": 0.75})
    return records


def _labels(axes):
    return {line.get_label(): line for line in axes.get_lines() if not line.get_label().startswith("_")}


def _titles(figure):
    return [axes.get_ylabel() for axes in figure.axes]


def test_dynamics_draws_four_panels_and_saves_them(tmp_path):
    path = tmp_path / "figures" / "dynamics.png"
    figure = dynamics(_records(), path, "a run", mu_bounds=(0.05, 0.95))
    assert _titles(figure) == ["µ (weight of SFT)", "entropy (nats)", "reward", "accuracy"]
    assert imread(path).shape[1] > 1000


def test_the_panel_of_a_metric_that_is_not_there_is_left_out():
    assert _titles(dynamics(_records(mu=False), None, "grpo")) == ["entropy (nats)", "reward", "accuracy"]


def test_the_two_terms_are_drawn_from_where_mu_began():
    lines = _labels(dynamics(_records(), None, "a run").axes[0])
    assert lines["meta-gradient terms, summed"].get_ydata()[-1] == pytest.approx(0.5 + 30 * 0.004)
    assert lines["entropy terms, summed"].get_ydata()[-1] == pytest.approx(0.5 + 30 * 0.006)


def test_the_accuracy_after_warm_up_and_at_the_end_can_be_read():
    legend = dynamics(_records(), None, "a run").axes[-1].get_legend()
    assert "test: 25.0% after warm-up, 75.0% at the end" in [text.get_text() for text in legend.get_texts()]


def test_a_run_that_has_no_step_yet_can_be_drawn(tmp_path):
    dynamics([], tmp_path / "dynamics.png", "just started")
    assert (tmp_path / "dynamics.png").stat().st_size > 0


def test_a_null_is_a_gap_and_warm_up_is_not_training():
    steps, values = series([*_records(2), {"phase": "train", "step": 2, "entropy": None}], "entropy")
    assert steps == [0, 1, 2]
    assert values[:2] == [0.5, 0.5]
    assert math.isnan(values[2])


def test_smoothing_keeps_a_constant_and_passes_over_gaps():
    assert smoothed([1.0, math.nan, 1.0, 1.0], 3) == [1.0, 1.0, 1.0, 1.0]
    assert smoothed([0.0, 3.0, 0.0], 3) == [1.5, 1.0, 1.5]


def test_comparison_has_a_line_for_every_run():
    figure = comparison({"amft": [_records(), _records()], "grpo": [_records(mu=False)]}, None, "two runs")
    assert [set(_labels(axes)) for axes in figure.axes[:2]] == [{"amft", "grpo"}] * 2
    assert [axes.get_ylabel() for axes in figure.axes] == ["accuracy", "reward", "µ"]
    assert [len(axes.lines) for axes in figure.axes] == [3, 3, 2]


def test_the_ends_of_runs_have_a_panel_for_each_set_and_a_dot_for_each_seed(tmp_path):
    accuracy = {"test": {"amft": [0.5, 0.7], "grpo": [0.25, None]}, "kept": {"amft": [0.9, 0.8]}}
    figure = ends(accuracy, tmp_path / "ends.png")
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["test", "kept"]
    dots = [(list(line.get_xdata()), line.get_marker()) for line in figure.axes[0].get_lines()]
    assert dots == [([0.5, 0.7], "o"), ([pytest.approx(0.6)], "|"), ([0.25], "o"), ([0.25], "|")]
    assert imread(tmp_path / "ends.png").shape[1] > 1000


def test_the_mu_of_each_run_is_a_line():
    figure = mu_of_runs({"amft": [_records(), _records()], "fixed": [_records()]}, None)
    assert len(figure.axes[0].lines) == 3
    assert set(_labels(figure.axes[0])) == {"amft", "fixed"}
