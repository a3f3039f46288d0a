"""metrics.jsonl survives kills and resumes, and two runs are compared by it."""

import math

import pytest

from nemo_amft.observe import compare, side_output
from nemo_amft.observe.metrics import MetricsWriter, NullMetricsWriter, is_time_key, read_metrics
from nemo_amft.types import UserError


def _places(path):
    return [(record["phase"], record["step"]) for record in read_metrics(path)]


def test_a_float_comes_back_as_it_was(tmp_path):
    value = 0.1 + 0.2
    with MetricsWriter(tmp_path) as writer:
        writer.write("train", 0, {"mu": value, "reward/timeout": 3})
        assert read_metrics(tmp_path)[0]["mu"] == value, "the record must be on disk before the file is closed"
    assert '"reward/timeout": 3}' in (tmp_path / "metrics.jsonl").read_text()


def test_nan_and_infinity_become_null_are_counted_and_warned_of_once(tmp_path, caplog):
    with MetricsWriter(tmp_path) as writer:
        writer.write("train", 0, {"mu": math.nan, "entropy": 1.0})
        writer.write("train", 1, {"mu": math.inf})
    assert [record["mu"] for record in read_metrics(tmp_path)] == [None, None]
    assert writer.non_finite == 2
    assert len(caplog.records) == 1


def test_loggers_get_finite_scalars_and_warm_up_apart(tmp_path):
    class Recorder:
        experiment = None

        def __init__(self):
            self.calls = []

        def finalize(self, status):
            pass

        def log_metrics(self, metrics, step=None):
            self.calls.append((metrics, step))

    logger = Recorder()
    with MetricsWriter(tmp_path, [logger]) as writer:
        writer.write("warmup", 3, {"loss/sft": 2.0})
        writer.write("train", 0, {"loss/sft": 1.0, "mu": math.nan})
    assert logger.calls == [({"warmup/loss/sft": 2.0}, 3), ({"loss/sft": 1.0}, 0)]


def test_a_logger_that_raises_is_warned_of_once_counted_and_not_the_end(tmp_path, caplog):
    class Broken:
        experiment = None

        def log_metrics(self, metrics, step=None):
            raise ConnectionError("no route to host")

        def finalize(self, status):
            raise OSError("disk full")

    before = side_output.failures["Broken"]
    with MetricsWriter(tmp_path, [Broken()]) as writer:
        writer.write("train", 0, {"mu": 0.5})
        writer.write("train", 1, {"mu": 0.5})
    assert _places(tmp_path) == [("train", 0), ("train", 1)]
    assert side_output.failures["Broken"] - before == 3
    assert [record.message for record in caplog.records] == [
        "Broken failed (ConnectionError: no route to host); the run goes on without, and this is not warned of again"
    ]


def _whole_run(folder):
    writer = MetricsWriter(folder)
    for step in range(2):
        writer.write("warmup", step, {})
    writer.write("validation", 0, {})
    for step in range(4):
        writer.write("train", step, {})
        writer.write("validation", step + 1, {})
    return writer


@pytest.mark.parametrize(
    ("place", "left"),
    [
        (("warmup", 0), []),
        (("warmup", 1), [("warmup", 0)]),
        (("train", 0), [("warmup", 0), ("warmup", 1), ("validation", 0)]),
        (("train", 1), [("warmup", 0), ("warmup", 1), ("validation", 0), ("train", 0), ("validation", 1)]),
    ],
)
def test_rewind_leaves_what_the_resumed_run_will_not_write_again(tmp_path, place, left):
    with _whole_run(tmp_path) as writer:
        writer.rewind(*place)
        assert _places(tmp_path) == left
        writer.write(*place, {})  # and writing goes on behind it
    assert _places(tmp_path) == [*left, place]


def test_half_a_line_of_a_killed_job_is_passed_over_and_not_appended_to(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"phase": "train", "step": 0}\n{"phase": "train", "st')
    assert _places(tmp_path) == [("train", 0)]
    with MetricsWriter(tmp_path) as writer:
        writer.write("train", 1, {})
    assert _places(tmp_path) == [("train", 0), ("train", 1)]


@pytest.mark.parametrize("damage", ['{"phase": "tra', "[]", '{"step": 1}', '{"phase": "lunch", "step": 1}',
                                    '{"phase": "train", "step": 1, "mu": []}'])  # fmt: skip
def test_other_damage_is_one_line_with_file_and_line(tmp_path, damage):
    path = tmp_path / "metrics.jsonl"
    path.write_text(f'{{"phase": "train", "step": 0}}\n{damage}\n{{"phase": "train", "step": 1}}\n')
    with pytest.raises(UserError, match=r"metrics\.jsonl, line 2: found .*expected") as error:
        read_metrics(path)
    assert "\n" not in str(error.value)


def test_the_null_writer_has_every_method_of_the_real_one():
    methods = {name for name in vars(MetricsWriter) if not name.startswith("_")}
    assert methods <= set(vars(NullMetricsWriter))


def _write(folder, **metrics):
    with MetricsWriter(folder) as writer:
        writer.write("train", 0, metrics)
    return str(folder / "metrics.jsonl")


def test_compare_exits_0_for_equal_runs_times_aside(tmp_path, capsys):
    a = _write(tmp_path / "a", **{"mu": 0.5, "seconds/rollout": 1.0, "memory/peak": 5.0, "tokens_per_second/training": 2.0})
    b = _write(tmp_path / "b", **{"mu": 0.5, "seconds/rollout": 9.0, "memory/peak": 6.0})
    assert compare.main([a, b]) == 0
    assert capsys.readouterr().out == ""


def test_compare_exits_1_and_shows_the_last_digit_that_differs(tmp_path, capsys):
    a = _write(tmp_path / "a", mu=0.5, entropy=1.0)
    b = _write(tmp_path / "b", mu=0.5000000000000001, entropy=1.0)
    assert compare.main([a, b]) == 1
    assert capsys.readouterr().out.splitlines()[2:] == ["@@ train step 0 @@", "-mu: 0.5", "+mu: 0.5000000000000001"]


def test_compare_sees_a_run_that_ended_early(tmp_path):
    a = _write(tmp_path / "a", mu=0.5)
    b = _write(tmp_path / "b", mu=0.5)
    with MetricsWriter(tmp_path / "b") as writer:
        writer.write("train", 1, {"mu": 0.5})
    assert compare.main([a, b]) == 1


def test_compare_exits_2_with_one_line_for_a_file_that_is_not_there(tmp_path, capsys):
    assert compare.main([str(tmp_path / "no"), str(tmp_path / "no")]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_only_measurements_of_the_machine_count_as_times():
    assert all(map(is_time_key, ["time", "seconds/rl", "tokens_per_second/generation", "memory/peak"]))
    assert not any(map(is_time_key, ["step", "reward/timeout", "timeout_fraction", "mu"]))
