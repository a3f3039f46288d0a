"""The option of a multiple choice that a short text names."""

from __future__ import annotations

import pytest

from nemo_amft.tasks.math.choice import ChoiceVerifier
from nemo_amft.tasks.math.labels import lone_letter, option
from nemo_amft.tasks.math.oat import OatVerifier
from nemo_amft.tasks.math.verifier import MathVerifier

NAMED = {
    "B": [
        "B", "b", " B ", "(B)", "[B]", "B.", "B)", "$B$", "**B**", r"\(B\)", "\u24b7",
        r"\text{B}", r"\textrm{B}", r"\textsf{B}", r"\mathsf{B}", r"\mathbf{\text{B}}", r"\textbf{(B)}", r"{\rm B}", r"\bf B",
        r"\underline{B}", r"\textcolor{red}{B}", r"\left(B\right)",
        "Option B", r"\text{Option B}", r"\text{Option } B", "option (B)", "Choice B: rose", "Answer: B",
        "The correct answer is B",
        "B) rose", "B. rose", "B: rose", "(B) rose", "B - rose", "B \u2013 rose", "B\u2014rose", "B -- rose", "B (rose)",
        "B, rose", r"\text{B. rose}", r"\text{B} - \text{rose}", r"\mathrm{(B)}\ 12", "B because D is blue", "B) 5, 7",
        "B. 3: 2", "B) Vitamin D.", r"B) \text{All of A., C. and D.}", "B) All of A., C. and D.", "B. Both A. and C.",
        r"B. \text{A. and C.}", "B) A and C", "(B) A, C and D",
    ],
    "3": ["3", "\uff13", "(3)", "3) rose", "Option 3", "3 - red roses"],
    None: [
        "", "Birch", "(Birch)", "B rose", "A bird", "None of the above", "I don't know", "3.5", "3 - 2",
        "B, D", "B and D", "B or D", "B/D", "B - D", "B. D", "B) or D)", "B) x, D) y", "B. x; D. y", "(B) x and (D) y",
        r"B \text{ or } D", r"B) \text{ or D)}", "Options B and D",
        "B-cell", "B = 3", "B_1", "B^2", "f (x)", "P(heads)", r"\langle H\rangle \ll \Delta E", r"\frac{B}{2}",
    ],
}  # fmt: skip


@pytest.mark.parametrize(("text", "name"), [(text, name) for name, texts in NAMED.items() for text in texts])
def test_the_option_that_a_text_names(text, name):
    assert option(text) == name


@pytest.mark.parametrize("grader", [ChoiceVerifier, OatVerifier, MathVerifier])
def test_every_grader_reads_the_letters_of_a_gold_letter_and_no_other(grader):
    grade = grader(thinking=False)
    for boxed in ("B - rose", r"\text{Option B}", r"{\rm B}", "B) Both A. and C."):
        assert [grade(gold, rf"\boxed{{{boxed}}}", True).correct for gold in "ABCD"] == [False, True, False, False]


def test_a_gold_letter_stands_alone():
    golds = ("C", "(C)", r"\text{(C)}", r"{\rm C}", "$C$", "c", "K", "AB", "C. rose", "3")
    assert [lone_letter(gold) for gold in golds] == ["C"] * 5 + [None] * 5
