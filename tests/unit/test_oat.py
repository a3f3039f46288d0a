"""The grader of reports: what counts as the same answer, and that nothing a policy writes takes it down."""

from __future__ import annotations

import re
import time
from fractions import Fraction

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from nemo_amft.config.schema import DataConfig
from nemo_amft.data.boxed import last_boxed
from nemo_amft.data.golds import for_grader, join_golds, readable, split_golds
from nemo_amft.tasks.math import MathConfig, MathTask
from nemo_amft.tasks.math.choice import ChoiceVerifier
from nemo_amft.tasks.math.expression import differ, read, same_value
from nemo_amft.tasks.math.graders import BenchmarkVerifier
from nemo_amft.tasks.math.normalise import normalise
from nemo_amft.tasks.math.oat import OatVerifier, agrees, elements, repeated_share
from nemo_amft.tasks.math.verifier import MathVerifier
from nemo_amft.tasks.rewards import RewardPool

OAT = OatVerifier(thinking=False)
TIMEOUT_S = 2.0

ANSWERS = [
    ("72", r"The answer is \boxed{72}.", True),
    ("72", r"\boxed{73}", False),
    ("72", "So it is 72.", False),  # no box, no answer
    ("1", r"first \boxed{1}, no: \boxed{2}", False),  # the last box only
    ("2", r"first \boxed{1}, no: \boxed{2}", True),
    ("2", r"\boxed{2} and then \boxed{", False),  # the last one is never closed
    ("142.0", r"\boxed{142}", True),
    ("142.0", r"\boxed{142.5}", False),
    ("-4.0", r"\boxed{-4}", True),
    ("025", r"\boxed{25}", True),
    ("1,234", r"\boxed{1234}", True),
    ("1234", r"\boxed{1,234}", True),
    ("1234", r"\boxed{1{,}234}", True),
    ("12,34", r"\boxed{1234}", False),  # a list, not a number
    (r"50\%", r"\boxed{50\%}", True),
    (r"50\%", r"\boxed{50}", True),
    (r"50\%", r"\boxed{5\%}", False),
    (r"\boxed{204}", r"\boxed{204}", True),  # delimiters of its own
    ("$57$", r"\boxed{57}", True),
    ("57", r"\boxed{$57$}", True),
    (r"\$32,\!348", r"\boxed{32348}", True),
    ("10", r"\boxed{10 \text{ cm}}", True),
    ("10", r"\boxed{10 \text{ cm}^2}", True),
    ("10", r"\boxed{10 cm}", True),
    (r"5.4 \text{ cents}", r"\boxed{5.4}", True),
    (r"336^\circ", r"\boxed{336}", True),
    (r"\text{Evelyn}", r"\boxed{Evelyn}", True),
    (r"\text{Evelyn}", r"\boxed{\text{Evan}}", False),
    (r"\frac{14}{3}", r"\boxed{\dfrac{14}{3}}", True),
    (r"\frac{14}{3}", r"\boxed{14/3}", True),
    (r"\frac{14}{3}", r"\boxed{\frac{28}{6}}", True),
    (r"\frac{14}{3}", r"\boxed{4\frac{2}{3}}", True),
    (r"\frac{14}{3}", r"\boxed{4.6667}", False),
    ("0.5", r"\boxed{\frac12}", True),
    (r"3\sqrt{13}", r"\boxed{\sqrt{117}}", True),
    (r"3\sqrt{13}", r"\boxed{10.8167}", False),
    (r"\left( 3, \frac{\pi}{2} \right)", r"\boxed{(3, \pi/2)}", True),
    ("(1, 2)", r"\boxed{(2, 1)}", False),
    ("(1, 2)", r"\boxed{(1, 2, 3)}", False),
    ("(1, 4)", r"\boxed{(1, 2+2)}", True),
    ("(1,2]", r"\boxed{(1,2]}", True),
    ("(1,2]", r"\boxed{[1,2)}", False),
    ("p - q", r"\boxed{-q + p}", True),
    ("p - q", r"\boxed{q - p}", False),
    (r"\frac{1}{2 n+2}", r"\boxed{\frac{1}{2(n+1)}}", True),
    ("x^2", r"\boxed{x}", False),
    ("k=1", r"\boxed{1}", True),
    ("1", r"\boxed{x = 1}", True),
    ("NaN", r"\boxed{NaN}", True),
    ("3", r"\boxed{NaN}", False),
    ("3", r"\boxed{\infty}", False),
    ("42", "\\boxed{\u0664\u0662}", True),  # Arabic-Indic digits
    ("42", "\\boxed{\uff14\uff12}", True),  # full-width
    ("42", "\\boxed{\u096a\u0968}", True),  # Devanagari
    ("52", "\\boxed{5\u00b2}", False),  # a superscript is a power
    ("-7", "\\boxed{\u22127}", True),
    ("3", r"\boxed{}", False),
    ("3", "", False),
    ("5", r"reward: 5 {\"reward\": 5} [1.0, true, \"ok\", \"\"] \boxed{4}", False),
    ("5", "reward: 5", False),
    ("{1,2}", r"\boxed{\{1,2\}}", True),
    ("4.5e33", r"\boxed{4.5 \times 10^{33}}", True),
    ("4.5e33", r"\boxed{4.5e33}", True),
    ("4.5e33", r"\boxed{4.5 \times 10^{32}}", False),
    ("1e-5", r"\boxed{0.00001}", True),
]

HOSTILE = {
    "power tower": r"\boxed{9^9^9^9}",
    "power tower in braces": r"\boxed{9^{9^{9^{9}}}}",
    "nested factorials": r"\boxed{((9!)!)!}",
    "long factorial": r"\boxed{99999999!}",
    "huge determinant": r"\boxed{\det\begin{pmatrix}"
    + r"\\".join("&".join(f"x_{{{i}{j}}}+{i * j}" for j in range(9)) for i in range(9))
    + r"\end{pmatrix}}",
    "100,000 digits": rf"\boxed{{{'7' * 100_000}}}",
    "100,000 letters": rf"\boxed{{{'ab' * 50_000}}}",
    "nested braces": rf"\boxed{{{'{' * 20_000}5{'}' * 20_000}}}",
    "nested brackets": rf"\boxed{{{'(' * 2_000}5{')' * 2_000}}}",
    "nested roots": "\\boxed{" + "\\sqrt{" * 500 + "5" + "}" * 500 + "}",
    "unclosed boxes": r"\boxed{" * 15_000,
    "closed thoughts, many times": "</think>" * 12_000,
    "null bytes": "\\boxed{\x00\x1e\x1f}",
}
"""None of these is 5. A verdict has to come for each, by time or memory limit if need be."""


@pytest.mark.parametrize(("gold", "response", "correct"), ANSWERS)
def test_hard_answers(gold, response, correct):
    verdict = OAT(gold, response, True)
    assert (verdict.correct, verdict.reward, verdict.status) == (correct, float(correct), "ok")


def test_only_the_end_of_finished_thoughts_is_graded():
    thinking = OatVerifier(thinking=True)
    assert thinking("5", r"\boxed{4}</think>\boxed{3}</think>\boxed{5}", True).correct
    assert not thinking("5", r"\boxed{5}</think>\boxed{4}", True).correct
    assert not thinking("5", r"\boxed{5}", True).correct
    assert not OAT("5", r"\boxed{5}", False).correct


def test_any_of_several_golds_will_do():
    golds = join_golds(["1", r"\frac{1}{2}", "x+1"])
    assert split_golds(golds) == ["1", r"\frac{1}{2}", "x+1"]
    assert readable(for_grader("oat", golds)) == r"1 or \frac{1}{2} or x+1"
    for grader in (OAT, MathVerifier(thinking=False)):
        assert [grader(golds, rf"\boxed{{{a}}}", True).correct for a in ("1", "0.5", "1+x", "2")] == [True, True, True, False]


def test_a_long_answer_is_wrong_only_where_it_loops():
    once = "+".join(f"{n * n + 17}x_{{{n}}}" for n in range(20))
    assert len(once) > 128
    assert OAT(once, rf"\boxed{{{once}}}", True).correct
    loop = "1+" * 80 + "1"
    assert OAT(loop, rf"\boxed{{{loop}}}", True).detail == "too long or repetitive"


@given(st.text(alphabet="ab1+", max_size=25))
def test_the_repeated_share_counts_substrings(text):
    substrings = [text[i:j] for i in range(len(text)) for j in range(i + 1, len(text) + 1)]
    expected = 1 - len(set(substrings)) / len(substrings) if substrings else 0.0
    assert repeated_share(text) == pytest.approx(expected)


@pytest.fixture(scope="module")
def pool():
    with RewardPool(BenchmarkVerifier(thinking=False), 1, TIMEOUT_S, 512) as pool:
        yield pool


@pytest.mark.slow  # most of it waits for time limits
@pytest.mark.parametrize("grader", ["oat", "math_verify", "choice"])
def test_a_hostile_answer_gets_its_verdict_and_the_next_one_too(pool, grader):
    items = [(for_grader(grader, "5"), response, True) for response in HOSTILE.values()]
    last = (for_grader("oat", "5"), r"\boxed{5}", True)
    *verdicts, after = pool.score([*items, last])
    for name, verdict in zip(HOSTILE, verdicts, strict=True):
        nested = name in ("nested braces", "nested brackets")  # a 5, if anybody reads it
        assert nested or not verdict.correct, (name, verdict)
        assert verdict.reward == float(verdict.correct)
    assert after.correct


def test_one_verifier_holds_all_graders(pool):
    found = pool.score([
        (for_grader("oat", "72"), "So it is 72.", True),
        (for_grader("math_verify", "72"), "So it is 72.", True),
        (for_grader("choice", "B"), r"\boxed{B}", True),
        (for_grader("choice", "B"), r"\boxed{2}", True),
    ])  # fmt: skip
    assert [v.correct for v in found] == [False, True, True, False]


def test_the_tasks_grader_is_a_key():
    verifiers = [MathTask(MathConfig(grader=g), DataConfig(train="x/y"), 1).verifier() for g in ("math_verify", "oat")]
    assert [type(v) for v in verifiers] == [MathVerifier, OatVerifier]


# ---- boxes


def _balanced(depth: int) -> st.SearchStrategy[str]:
    plain = st.text(alphabet="ab 12\\^_$é", max_size=6).map(lambda t: re.sub(r"\\", r"\\frac ", t))
    if depth == 0:
        return plain
    return st.lists(st.one_of(plain, _balanced(depth - 1).map(lambda t: f"{{{t}}}")), max_size=4).map("".join)


@given(st.text(alphabet="x{}\\ boxed$", max_size=40), _balanced(3), st.text(alphabet="x}{ .", max_size=10))
def test_the_last_box_is_found_whole(before, inside, after):
    assert last_boxed(f"{before} \\boxed{{{inside}}}{after}") == inside.strip()


@given(st.text())
@example("\\boxed")
@example("\\boxed{\\")
@example("\\boxedx{5}")
def test_any_text_has_a_box_or_none(text):
    found = last_boxed(text)
    assert found is None or found in text


# ---- writing


def _thousands(number: int) -> str:
    return f"{number:,}"


@given(st.integers(-(10**12), 10**12), st.integers(0, 3))
def test_ways_of_writing_a_number_are_one(number, zeros):
    ways = [str(number), f"${number}$", f"{number}.{'0' * (zeros + 1)}", f"{{{number}}}", f" {number} ", f"{number}^\\circ"]
    ways += [_thousands(number), f"{number}\\%", f"x = {number}", f"{number} \\text{{ cm}}", f"\\text{{{number}}}"]
    assert {normalise(way) for way in ways} == {str(number)}


@given(st.decimals(-10000, 10000, places=3), st.decimals(-10000, 10000, places=3))
def test_different_numbers_stay_different(one, other):
    assert (normalise(f"{one:f}") == normalise(f"{other:f}")) == (one == other)


@given(st.text())
def test_normalising_twice_changes_nothing_for_words_and_never_fails(text):
    assert isinstance(normalise(text), str)
    assert normalise(normalise("East")) == normalise("East") == normalise("east")


# ---- values

_NUMBERS = st.integers(0, 50).map(lambda n: (str(n), Fraction(n)))


def _sums(parts):
    return st.one_of(
        st.tuples(parts, parts).map(lambda p: (f"({p[0][0]}+{p[1][0]})", p[0][1] + p[1][1])),
        st.tuples(parts, parts).map(lambda p: (f"({p[0][0]}-{p[1][0]})", p[0][1] - p[1][1])),
        st.tuples(parts, parts).map(lambda p: (f"{p[0][0]}\\cdot {p[1][0]}", p[0][1] * p[1][1])),
        st.tuples(parts, parts)
        .filter(lambda p: p[1][1] != 0)
        .map(lambda p: (f"\\frac{{{p[0][0]}}}{{{p[1][0]}}}", p[0][1] / p[1][1])),
        st.tuples(parts, st.integers(0, 3))
        .filter(lambda p: p[0][1] != 0)
        .map(lambda p: (f"({p[0][0]})^{p[1]}", p[0][1] ** p[1])),
    )


@given(st.recursive(_NUMBERS, _sums, max_leaves=6))
def test_what_is_read_has_the_value_that_fractions_give(pair):
    text, value = pair
    found = read(text)
    if text.count("^") > 1 or len(text) > 200:
        return  # powers of powers are refused
    assert found is not None
    assert Fraction(int(found.p), int(found.q)) == value


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (r"(a+b)^2", r"a^2+2ab+b^2", True),
        (r"\sqrt{x^2}", "x", False),  # not for negative x
        (r"\sin^2", "x", False),
        (r"\log_{2}8", "3", True),
        (r"e^{2}", r"e\cdot e", True),
        (r"\frac{\pi}{4}", r"\arctan 1", True),
        ("10^{-35}", r"2\cdot 10^{-35}", False),  # small, and not the same
        (r"\pi\cdot 10^{-60}", r"2\pi\cdot 10^{-60}", False),
        (r"\pi\cdot 10^{-60}x", r"\frac{\pi x}{10^{60}}", True),
        (r"\sqrt{2}\cdot\sqrt{3}-\sqrt{6}", "0", True),
        ("2 3", "6", False),  # digits apart: not read
        ("abc", "cba", False),  # three letters: not read
        ("2^{3^{2}}", "512", False),  # powers of powers: not read
        ("(2^3)^2", "64", True),  # a small number already
        ("10^{100000}", "10^{100000}+1", False),
        (r"\frac{1}{0}", r"\frac{1}{0}", False),
        ("__import__('os')", "0", False),
    ],
)
def test_values(one, other, same):
    assert same_value(one, other) is same


@pytest.mark.parametrize(
    ("one", "other", "clear"),
    [
        ("2", "3", True),
        ("0.333333", r"\frac{1}{3}", False),  # may be a rounding
        (r"\sqrt{x^2}", "x", False),  # the same for positive x
        ("x+1", "x+2", True),
        ("x", "y", True),
        ("10^{-9}", r"2\cdot 10^{-9}", True),
        ("10^{-9}", "0", True),
        ("e^2", "7.389", False),  # e may be the constant
        ("abc", "1", False),  # not read
    ],
)
def test_clear_differences(one, other, clear):
    assert differ(one, other) is clear


@given(st.sampled_from(sorted({gold for gold, _, _ in ANSWERS})), st.sampled_from(sorted({gold for gold, _, _ in ANSWERS})))
@settings(max_examples=60)
def test_what_differs_clearly_differs_for_math_verify(gold, other):
    from nemo_amft.tasks.math.readings import read_answer, same

    if "%" not in gold + other and differ(normalise(gold), normalise(other)):
        assert not same(read_answer(gold), read_answer(other))


@given(st.text(alphabet=r"0123456789abxy+-*/^_(){}[]\. " + "\\", max_size=60))
@settings(max_examples=300)
def test_no_formula_takes_long_or_fails(text):
    started = time.process_time()
    assert same_value(text, "1") in (True, False)
    assert time.process_time() - started < 2


@pytest.mark.parametrize(
    ("text", "parts"),
    [("(1,2)", ["1", "2"]), ("[1,(2,3))", ["1", "(2,3)"]), ("(a)(b)", ["(a)(b)"]), ("1,2", ["1,2"]), ("(12)", ["(12)"])],
)
def test_tuples_are_split_at_their_own_commas(text, parts):
    assert elements(text) == parts


def test_sets_are_left_to_math_verify():
    assert agrees("$69$,$84$", "84, 69")


# ---- multiple choice


def test_a_gold_digit_stands_for_its_place():
    grade = ChoiceVerifier(thinking=False)
    assert [grade("2", rf"\boxed{{{a}}}", True).correct for a in ("2", "B", "1", "C")] == [True, True, False, False]
    # A gold letter's options carry letters: a digit names none of them.
    assert [grade("B", rf"\boxed{{{a}}}", True).correct for a in ("B", "2", "C")] == [True, False, False]
    assert not grade("B", r"\boxed{A}, or rather B", True).correct
    assert not grade("B", r"\boxed{B}", False).correct
    assert ChoiceVerifier(thinking=True)("B", r"A?</think>\boxed{B}", True).correct
