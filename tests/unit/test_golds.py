"""Golds that grade nothing are known, and dropped from a set with a word."""

from __future__ import annotations

import json
import logging

import pytest

from nemo_amft.data.golds import for_grader, join_golds, unprovable
from nemo_amft.data.sources import load_examples
from nemo_amft.types import UserError

GRADE_NOTHING = [
    "proof", "Proof.", "PROOF", r"\text{proof}", r"$\boxed{\text{Proof}}$", "**proof**", "proof omitted",
    "See the proof above", "proof by induction", "to be proven", "Q.E.D.", "notfound", "not found", "Not_Found",
    r"\text{not found}", "answer not found", "not provided", "no answer", "N/A",
]  # fmt: skip
GRADE = [
    "5", "x", "A", "Na", "NaN", "none", "None of them", "no", "no solution", "does not exist", "undefined",
    "80 proof", "proof 5", "waterproof", "not 5", "",
]  # fmt: skip


@pytest.mark.parametrize(("gold", "nothing"), [*((gold, True) for gold in GRADE_NOTHING), *((gold, False) for gold in GRADE)])
def test_what_grades_nothing(gold, nothing):
    assert unprovable(gold) is nothing


def test_one_gold_of_several_is_enough():
    assert not unprovable(for_grader("oat", join_golds(["proof", "5"])))
    assert unprovable(for_grader("oat", join_golds(["proof", "notfound"])))


def _rows(path, *answers):
    path.write_text("".join(json.dumps({"problem": f"Problem {i}?", "answer": a}) + "\n" for i, a in enumerate(answers)))
    return str(path)


def test_rows_that_cannot_be_graded_are_dropped_counted_and_logged(tmp_path, caplog):
    file = _rows(tmp_path / "set.jsonl", "1", "proof", "2", "notfound", "3")
    with caplog.at_level(logging.WARNING):
        assert [example.answer for example in load_examples(file)] == ["1", "2", "3"]
    assert caplog.messages == [f"{file}: 2 rows whose answer grades nothing left out (first: {file}, line 2, 'proof')"]


def test_a_set_without_another_row_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"set\.jsonl: found no row with an answer to verify responses with, expected at least"):
        load_examples(_rows(tmp_path / "set.jsonl", "proof"))
