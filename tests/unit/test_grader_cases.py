"""benchmarks/grader_cases.py: labelled responses, and cases read from tests that are not run."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "grader_cases.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("grader_cases", SCRIPT)
    module = sys.modules["grader_cases"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    del sys.modules["grader_cases"]


def _file(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_every_grader_grades_and_what_differs_is_listed(script, tmp_path, capsys):
    right = {"gold": ["7", "8"], "response": r"\boxed{8}", "expected": 1}
    letter = {"gold": "B", "response": r"\boxed{B}", "expected": 1}
    assert script.main([_file(tmp_path / "a.jsonl", right, letter), "--workers", "1"]) == 0
    table = capsys.readouterr().out
    assert [line.split(" | ")[1:4] for line in table.splitlines()[2:5]] == [
        ["math_verify", "2", "0"], ["oat", "2", "0"], ["choice", "1", "0"],
    ]  # fmt: skip
    file = _file(tmp_path / "b.jsonl", right, right | {"response": "It is 8."})
    assert script.main([file, "--workers", "1"]) == 1
    out = capsys.readouterr().out
    assert f"oat: {file}, line 2: gold '7 or 8', response 'It is 8.': 0, expected 1" in out
    assert "math_verify: " not in out


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"response": "x", "expected": 1}, "line 1: gold: found None, expected a text or a list of texts"),
        ({"gold": "1", "expected": 1}, "line 1: response: found None, expected a text"),
        ({"gold": "1", "response": "1", "expected": "yes"}, "line 1: expected: found 'yes', expected 0 or 1"),
        ([1], "line 1: found list, expected an object"),
    ],
)
def test_rows_that_cannot_be_used_end_in_one_line(script, tmp_path, capsys, row, message):
    assert script.main([_file(tmp_path / "a.jsonl", row)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


CHECKOUT = """
import pytest
raise SystemExit("not to be run")
@pytest.mark.parametrize("gold,pred,expected", [("$1$", "$1$", 1), ("$1$", "$2$", 1), (f"{1}", "$1$", 1)])
def test_one(gold, pred, expected): ...
@pytest.mark.parametrize("gold, pred, result", [("$3$", "$4$", 0)])
def test_two(gold, pred, result): ...
@pytest.mark.parametrize("pred,expected,config", [("A", ["a"], None)])
def test_three(pred, expected, config): ...
"""


def test_literal_cases_of_math_verifys_tests_are_read_and_its_own_failures_excused(script, tmp_path, capsys):
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_all.py").write_text(CHECKOUT)
    cases = script.literal_cases(tmp_path)
    assert [(case.golds[0], case.response, case.expected) for case in cases] == [
        ("$1$", "$1$", True), ("$1$", "$2$", True), ("$3$", "$4$", False),
    ]  # fmt: skip
    assert script.main(["--math-verify-checkout", str(tmp_path), "--workers", "1"]) == 0
    assert "| math_verify | 3 | 1 | 1 |" in capsys.readouterr().out
    assert script.main(["--math-verify-checkout", str(tmp_path / "tests")]) == 2
    assert "found no cases in 0 files" in capsys.readouterr().err
