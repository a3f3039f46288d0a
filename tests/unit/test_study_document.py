"""docs/study.md says what its runs say, and nothing else."""

from pathlib import Path

from nemo_amft.observe import document
from nemo_amft.observe.runs import read_runs
from nemo_amft.study import read_study

ROOT = Path(__file__).parents[2]
DOCUMENT = ROOT / "docs" / "study.md"


def test_tables_and_numbers_are_those_of_the_committed_runs():
    runs = read_runs(ROOT / "docs" / "study")
    study = read_study(ROOT / "studies" / "amft.yaml")
    text = DOCUMENT.read_text(encoding="utf-8")
    assert document.filled(text, runs, study.tables, study.target, study.reference, DOCUMENT) == text


def test_the_runs_are_finished_and_every_cell_has_every_seed():
    study = read_study(ROOT / "studies" / "amft.yaml")
    seeds: dict[str, list[int]] = {name: [] for name in study.cells}
    for run in read_runs(ROOT / "docs" / "study"):
        assert run.finished, run
        if run.name in seeds:
            seeds[run.name].append(run.seed)
    assert all(sorted(found) in ([], study.seeds) for found in seeds.values()), seeds
