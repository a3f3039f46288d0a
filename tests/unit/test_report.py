"""Runs side by side."""

import pytest

from nemo_amft import report
from nemo_amft.observe.metrics import MetricsWriter
from nemo_amft.observe.summary import write_summary


def _run(folder, name, seed, accuracy, finished=True):
    with MetricsWriter(folder) as writer:
        writer.write("warmup", 0, {"data/samples": 0.0, "data/demonstrations": 100.0})
        writer.write("validation", 0, {"validation/accuracy": 0.4, "test/accuracy": 0.1, "longer/accuracy": 0.0})
        for step in range(3):
            work = {"data/samples": 8.0, "data/demonstrations": 4.0, "data/demonstration_share": 1 / 3}
            writer.write("train", step, {"mu": 0.5 + step / 10, "mu/meta_term": 0.02, "mu/entropy_term": -0.01, **work})
            if step == 1:
                writer.write("validation", 2, {"validation/accuracy": 0.9})
        final = {"validation/accuracy": 0.8, "test/accuracy": accuracy, "longer/accuracy": accuracy / 2}
        writer.write("validation", 3, final)
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
            "final longer": "31.2%",
            "best validation": "90.0%",
            # Nine tenths of the best are 81%, first passed after two steps; warm-up's demonstrations count.
            "rollouts to 81%": "16",
            "demonstrations to 81%": "108",
            "share of demonstrations": "33.3%",
            "final mu": "0.7000",
            "mu by meta-gradient": "+0.06",
            "mu by entropy": "-0.03",
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


def test_a_report_can_be_made_of_a_reports_numbers(tmp_path, capsys):
    runs = [_run(tmp_path / "a", "amft", 1, 0.5), _run(tmp_path / "b", "amft", 2, 0.25)]
    runs += [_run(tmp_path / "c", "grpo", 1, 0.125, finished=False)]
    report.main([*runs, "--out", str(tmp_path / "out")])
    first = capsys.readouterr().out
    report.main([str(tmp_path / "out"), "--out", str(tmp_path / "again")])
    assert capsys.readouterr().out == first
    assert (tmp_path / "again" / "curves.csv").read_bytes() == (tmp_path / "out" / "curves.csv").read_bytes()


def test_a_target_that_not_all_runs_reach_says_so(tmp_path, capsys):
    runs = [_run(tmp_path / str(seed), "amft", seed, 0.5) for seed in range(2)]
    with MetricsWriter(tmp_path / "1") as writer:
        writer.write("train", 3, {"data/samples": 8.0})
        writer.write("validation", 4, {"validation/accuracy": 0.99})
    report.main([*runs, "--target", "0.95"])
    (row,) = _rows(capsys.readouterr().out)
    assert row["rollouts to 95%"] == "32 (1 of 2)"
    assert report.main([*runs, "--target", "1.5"]) == 2


@pytest.mark.parametrize("damage", ["no run", "no json", "no object", "no seed", "too deep"])
def test_a_folder_that_is_no_run_is_one_line(tmp_path, capsys, damage):
    folder = tmp_path / "a"
    folder.mkdir()
    if damage != "no run":
        _run(folder, "amft", 1, 0.5)
        content = {"no json": "{", "no object": "[]", "no seed": '{"seed": []}', "too deep": "[" * 3000}
        (folder / "summary.json").write_text(content[damage])
    assert report.main([str(folder)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert str(folder) in error
    assert "expected" in error


STUDY = """
config: quickstart
seeds: [1, 2]
cells: {amft: [], grpo: []}
reference: amft
target: 0.85
tables:
  ends: {cells: [grpo, ppo, amft], columns: [final accuracy, less amft, longer after warm-up, rollouts to 85%]}
"""
DOCUMENT = """# A study
<!-- cost -->
<!-- end -->
GRPO ends at <!--= grpo | final accuracy -->what it was<!--/-->.
<!-- table ends -->
old
<!-- end -->
<!-- accuracy ends -->
<!-- end -->
<!-- mu ends -->
<!-- end -->
Conclusions.
"""


@pytest.fixture
def document(tmp_path, capsys):
    runs = [_run(tmp_path / f"a{seed}", "amft", seed, 0.5 + seed / 10) for seed in (1, 2)]
    runs += [_run(tmp_path / f"g{seed}", "grpo", seed, 0.55 + seed / 10) for seed in (1, 2)]
    report.main([*runs, "--out", str(tmp_path / "numbers")])
    (tmp_path / "study.yaml").write_text(STUDY)
    (tmp_path / "study.md").write_text(DOCUMENT)
    capsys.readouterr()

    def fill() -> tuple[int, str, str]:
        arguments = [str(tmp_path / "numbers"), "--study", str(tmp_path / "study.yaml"), "--into", str(tmp_path / "study.md")]
        return report.main(arguments), (tmp_path / "study.md").read_text(), capsys.readouterr().err

    return fill


def test_a_document_is_filled_from_the_runs_and_again_without_a_change(document, tmp_path):
    status, text, _ = document()
    assert status == 0
    lines = text.splitlines()
    assert "4 runs (0 unfinished), with 12 training steps and 96 rollouts in all, took 0.1 hours of one process." in lines
    # 65% and 75%: the standard error is 5%, and Student's t for one degree of freedom 12.706.
    assert "GRPO ends at <!--= grpo | final accuracy -->70.0% ± 63.5%<!--/-->." in lines
    rows = _rows("\n".join(line for line in lines if line.startswith("|")))
    # Seed by seed the difference is always 5 points, whatever the seeds differ by.
    assert rows[0] == {
        "run": "grpo", "seeds": "2", "final accuracy": "70.0% ± 63.5%", "less amft": "+5.0 ± 0.0",
        "longer after warm-up": "0.0% ± 0.0%", "rollouts to 85%": "16 ± 0",
    }  # fmt: skip
    assert (rows[1]["run"], rows[1]["seeds"], rows[1]["final accuracy"]) == ("ppo (not run)", "0", "-")
    assert "old" not in text
    assert {"![accuracy, ends](study/accuracy_ends.png)", "![mu, ends](study/mu_ends.png)"} <= set(lines)
    assert all((tmp_path / "study" / f"{name}_ends.png").stat().st_size > 0 for name in ("accuracy", "mu"))
    assert text.endswith("Conclusions.\n")
    assert document()[1] == text


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("table ends", "table end", "found the table 'end', expected one of ends"),
        ("= grpo |", "= ppo |", "found the cell 'ppo', expected one that was run: amft, grpo"),
        ("| final accuracy", "| accuracy", "found the column 'accuracy', expected one of final accuracy, final longer, "),
    ],
)
def test_a_mark_that_nothing_fits_is_one_line_and_leaves_the_document(document, tmp_path, old, new, message):
    (tmp_path / "study.md").write_text(DOCUMENT.replace(old, new))
    status, text, error = document()
    assert status == 2
    assert message in error
    assert text == DOCUMENT.replace(old, new)
