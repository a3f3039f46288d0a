"""Numbers as both graders of free answers read and compare them: tiny ones, percentages, groups of digits, decimal commas."""

from __future__ import annotations

import pytest

from nemo_amft.data.boxed import boxes, with_boxes
from nemo_amft.tasks.math.oat import OatVerifier
from nemo_amft.tasks.math.verifier import MathVerifier

GRADERS = {"math_verify": MathVerifier(thinking=False), "oat": OatVerifier(thinking=False)}

SMALL = [
    ("6.63e-34", r"6.63 \times 10^{-34}", True),
    ("6.63e-34", "6.63e-34", True),
    ("6.63e-34", r"66.3 \cdot 10^{-35}", True),
    ("6.63e-34", r"9.11 \times 10^{-31}", False),
    ("6.63e-34", "6.62e-34", False),
    ("3.2e-8", "0.000000032", True),
    ("3.2e-8", "0.000000033", False),
    ("0.0000003", r"\frac{3}{10^7}", True),
    ("0.0000003", "0.0000002", False),
    (r"\frac{1}{3^{80}}", "3^{-80}", True),
    (r"\frac{1}{3^{80}}", r"\frac{1}{3^{79}}", False),
    (r"1 - \frac{1}{3^{80}}", r"\frac{3^{80} - 1}{3^{80}}", True),
    (r"1 - \frac{1}{3^{80}}", "1", False),
    ("2^{-90}", "8.0779356694632e-28", True),
    ("2^{-90}", "8.0778e-28", False),
    ("6.63e-34", r"6.63e-34 \text{ J}", True),
    (r"\frac{1}{30!}", r"\frac{1}{31!}", False),
    (r"\pi \cdot 10^{-50}", r"\frac{\pi}{10^{50}}", True),
    (r"\pi \cdot 10^{-50}", r"2\pi \cdot 10^{-50}", False),
    (r"(5, 2 \times 10^{-20})", r"(5, 3 \times 10^{-20})", False),
    (r"\{5, 2 \times 10^{-20}\}", r"\{5, 3 \times 10^{-20}\}", False),
    (r"x = 2 \times 10^{-20}", r"x = 3 \times 10^{-20}", False),
    ("0", "0.0", True),
    ("0", "0.0000001", False),
    ("0.0000001", "0", False),
    ("0", r"10^{-25}", False),
]
ROUNDED = [
    (r"\frac{1}{7}", "0.142857", True),
    (r"\frac{1}{7}", "0.143", False),
    ("0.142857", r"\frac{1}{7}", True),
    (r"\frac{1}{81}", "0.012346", True),  # the last size at which six decimals decide
    (r"\frac{1}{7000}", "0.00014286", True),  # and then five digits
    (r"\frac{1}{7000}", "0.0001428", False),
    ("7.5e22", "75000000000000000000000", True),
    ("7.5e22", r"7.6 \times 10^{22}", False),
    ("10^{25}", "10^{25} + 1", False),
]
PERCENT = [
    (r"37\%", "37%", True),
    ("37%", r"37\%", True),
    ("37%", r"37\,\%", True),
    ("37%", r"37 \text{ percent}", True),
    ("37%", "37", True),
    ("37", "37%", True),
    ("37%", "0.37", True),
    (r"37\%", "0.37", True),
    (r"\frac{3}{8}", r"37.5\%", True),
    (r"37.5\%", "37.5%", True),
    (r"37.5\%", r"\frac{3}{8}", True),
    ("37.5%", "37.4%", False),
    ("37%", "0.37%", False),
    (r"0.37\%", "37%", False),
    (r"66\frac{2}{3}\%", r"66\frac{2}{3}%", True),
]
APART = [
    ("37", "3 7", False),
    ("37", r"3\ 7", False),
    ("10", "3 7", False),  # and no sum
    ("21", "3 7", False),
    ("3 7", "37", False),
    ("3 7", "3 7", True),
    ("4100", "4 100", True),
    ("4100000", r"4\,100\,000", True),
    ("41", "4, 1", False),
    ("7/2", "3 1/2", True),
    ("31/2", "3 1/2", False),
]
COMMAS = [
    ("2,75", "2.75", True),
    ("2.75", "2{,}75", True),
    ("2.75", r"2,75 \text{ m}", True),
    ("2,75", "275", False),
    ("0,75", "75", False),
    ("1.250,5", "1250.5", True),
    ("61,500", "61500", True),
    ("61,500", "61.5", False),
    ("3,8", "8, 3", True),  # two numbers, in any order
    ("-4,0", "0,-4", True),
    ("-4,0", "-4", False),  # half of two numbers
]


@pytest.mark.parametrize("grader", GRADERS)
@pytest.mark.parametrize(("gold", "boxed", "correct"), [*SMALL, *ROUNDED, *PERCENT, *APART, *COMMAS])
def test_numbers(grader, gold, boxed, correct):
    verdict = GRADERS[grader](gold, f"So it is $\\boxed{{{boxed}}}$.", True)
    assert (verdict.correct, verdict.status) == (correct, "ok")


@pytest.mark.parametrize(
    ("gold", "response", "correct"),
    [
        ("6.63e-34", "It comes to 6.63e-34.", True),
        ("6.63", "It comes to 6.63e-34.", False),
        ("37%", "It is 37 percent.", True),
        (r"37\%", "It is $37%$.", True),
        ("12", r"There are 5 of them, which is \boxed{12%}.", True),
        ("5", r"There are 5 of them, which is \boxed{12%}.", False),
        ("12000", rf"At first \boxed{{7}}. {'But that is wrong. ' * 5}It is \boxed{{12\,000}}.", True),
        ("12", rf"At first \boxed{{7}}. {'But that is wrong. ' * 5}It is \boxed{{12\,000}}.", False),
    ],
)
def test_numbers_in_free_text(gold, response, correct):
    assert GRADERS["math_verify"](gold, response, True).correct == correct


def test_boxes_are_changed_where_they_are_closed():
    text = r"\boxed{ \boxed{1} and \boxed{\frac{a}{b}} {\fbox{c \} d}} \boxed{"
    assert [text[begin:end] for begin, end in boxes(text)] == ["1", r"\frac{a}{b}", r"c \} d"]
    assert with_boxes(r"x \boxed{1\boxed{2}} y \boxed{3}", lambda held: f"<{held}>") == r"x \boxed{<1\boxed{2}>} y \boxed{<3>}"
