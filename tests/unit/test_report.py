"""Runs side by side."""

import pytest

from nemo_amft import report
from nemo_amft.observe.metrics import MetricsWriter
from nemo_amft.observe.summary import write_summary


def _run(folder, name, seed, accuracy, finished=True):
    with MetricsWriter(folder) as writer:
        writer.write("validation", 0, {"validation/accuracy": 0.9, "test/accuracy": 0.1})
        for step in range(3):
            writer.write("train", step, {"mu": 0.5 + step / 10, "reward/mean": 0.3})
        writer.write("validation", 3, {"validation/accuracy": 0.8, "test/accuracy": accuracy})
    if finished:
        write_summary(folder, {"name": name, "seed": seed, "wall_seconds": 90.0, "tokens_per_second": 1234.0})
    return str(folder)


def _rows(text):
    lines = [[cell.strip() for cell in line.strip("|\n").split("|")] for line in text.splitlines()]
    return [dict(zip(lines[0], line, strict=True)) for line in lines[2:]]


def test_a_row_has_the_numbers_of_the_run(tmp_path, capsys):
    assert report.main([_run(tmp_path / "a", "amft", 1, 0.625)]) == 0
    assert _rows(capsys.readouterr().out) == [
        {
            "run": "amft",
            "seeds": "1",
            "final accuracy": "62.5%",
            "best validation": "90.0%",
            "final mu": "0.7000",
            "steps": "3",
            "wall time [min]": "1.5",
            "tokens/s": "1,234",
        }
    ]


def test_seeds_of_one_name_are_a_mean_with_its_interval(tmp_path, capsys):
    runs = [_run(tmp_path / str(seed), "amft", seed, accuracy) for seed, accuracy in enumerate((0.5, 0.6, 0.7))]
    report.main(runs)
    (row,) = _rows(capsys.readouterr().out)
    # Student's t for 2 degrees of freedom is 4.303; the standard error is 0.1 / sqrt(3).
    assert (row["seeds"], row["final accuracy"]) == ("3", "60.0% ± 24.8%")


def test_the_same_seed_twice_is_warned_of(tmp_path, capsys):
    report.main([_run(tmp_path / "a", "amft", 1, 0.5), _run(tmp_path / "b", "amft", 1, 0.5)])
    assert "seed 1 is there 2 times" in capsys.readouterr().err


def test_an_unfinished_run_says_so_and_has_no_final_accuracy(tmp_path, capsys):
    report.main([_run(tmp_path / "a", "amft", 1, 0.5, finished=False)])
    (row,) = _rows(capsys.readouterr().out)
    assert (row["run"], row["final accuracy"]) == ("a (1 unfinished)", "-")


def test_out_holds_table_and_picture(tmp_path, capsys):
    report.main([_run(tmp_path / "a", "amft", 1, 0.5), "--out", str(tmp_path / "out")])
    assert (tmp_path / "out" / "report.md").read_text().startswith(capsys.readouterr().out)
    assert (tmp_path / "out" / "comparison.png").stat().st_size > 0


@pytest.mark.parametrize("damage", ["no run", "no json", "no object"])
def test_a_folder_that_is_no_run_is_one_line(tmp_path, capsys, damage):
    folder = tmp_path / "a"
    folder.mkdir()
    if damage != "no run":
        _run(folder, "amft", 1, 0.5)
        (folder / "summary.json").write_text({"no json": "{", "no object": "[]"}[damage])
    assert report.main([str(folder)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert str(folder) in error
    assert "expected" in error
