"""Answers for the graders: each equals itself however it is wrapped, other numbers differ, and nothing raises or hangs."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from fractions import Fraction

from hypothesis import strategies as st

from nemo_amft.data.boxed import boxes, last_boxed, with_boxes
from nemo_amft.data.golds import for_grader, join_golds
from nemo_amft.tasks.math.choice import ChoiceVerifier
from nemo_amft.tasks.math.expression import read, same_value
from nemo_amft.tasks.math.graders import BenchmarkVerifier
from nemo_amft.tasks.math.normalise import normalise
from nemo_amft.tasks.math.numerals import numeral, without_percent
from nemo_amft.tasks.math.oat import OatVerifier
from nemo_amft.tasks.math.readings import read_answer
from nemo_amft.tasks.math.verifier import MathVerifier
from nemo_amft.tasks.rewards import RewardPool
from tests.fuzz.kinds import Kind, TooLong, expect
from tests.fuzz.noise import TEXTS

GRADERS = {"math_verify": MathVerifier(False), "oat": OatVerifier(False)}
LIMIT_S = 10.0
"""reward.timeout_s."""

FRAMES = (
    "\\boxed{{{}}}", "The answer is \\boxed{{{}}}.", "$\\boxed{{{}}}$", "So $x$ it is.\n\\[\\boxed{{{}}}\\]\n",
    # Boxes that stand closer are one set to Math-Verify.
    "At first I had \\boxed{{999983}}, but that cannot be, as one sees on putting it into the equation.\n\nThus \\boxed{{{}}}",
)  # fmt: skip


@dataclass(frozen=True)
class Number:
    """A value, two ways to write it that mean it beyond doubt, and the frame around the second."""

    value: Fraction
    gold: str
    found: str
    frame: str


def _decimal(value: Fraction) -> str | None:
    """`value` in digits, where these end."""
    for places in range(7):
        scaled = value * 10**places
        if scaled.denominator == 1:
            digits = f"{abs(scaled.numerator):0{places + 1}d}"
            whole, part = (digits[:-places], digits[-places:]) if places else (digits, "")
            return ("-" if value < 0 else "") + whole + (f".{part}" if part else "")
    return None


def _writings(value: Fraction) -> list[str]:
    sign, a, b = "-" if value < 0 else "", abs(value.numerator), value.denominator
    found = [f"{sign}\\frac{{{a}}}{{{b}}}", f"{sign}{a}/{b}", f"{sign}\\dfrac{{{a}}}{{{b}}}"] if b > 1 else [f"{sign}{a}"]
    if b == 1:
        found += [f"{sign}{a:,}", f"{sign}{a}.0", f"{sign}{a:,}".replace(",", "{,}"), f"{sign}{a:,}".replace(",", "\\,")]
    if (decimal := _decimal(value)) is not None:
        found += [decimal, f"{decimal}0" if "." in decimal else f"{decimal}.00"]
    return found


_values = st.integers(-(10**7), 10**7).map(Fraction) | st.builds(Fraction, st.integers(-999, 999), st.integers(1, 99))


@st.composite
def _numbers(draw: st.DrawFn) -> Number:
    value = draw(_values)
    writings = st.sampled_from(_writings(value))
    return Number(value, draw(writings), draw(writings), draw(st.sampled_from(FRAMES)))


def _correct(grader: str, gold: str, response: str) -> bool:
    verdict = GRADERS[grader](gold, response, True)
    expect(verdict.status == "ok", f"{grader}: {gold!r} against {response!r}: {verdict.status}, {verdict.detail}")
    expect(verdict.reward in (0.0, 1.0) and verdict.correct == bool(verdict.reward), f"{grader}: reward {verdict.reward}")
    return verdict.correct


def _check_number(given: Number) -> None:
    response = given.frame.format(given.found)
    other = _writings(given.value + 1)[0]
    for grader in GRADERS:
        expect(_correct(grader, given.gold, response), f"{grader}: {given.found!r} is not taken for {given.gold!r}")
        expect(not _correct(grader, other, response), f"{grader}: {given.found!r} is taken for {other!r}")
        expect(not _correct(grader, given.gold, given.frame.format(other)), f"{grader}: {other!r} is taken for {given.gold!r}")


# ---- formulas, sets, tuples, words

_atoms = st.integers(0, 99).map(str) | st.sampled_from(("x", "y", r"\pi", r"\sqrt{2}", r"\frac{1}{2}", "0.25", "n", "e"))
_formulas = st.recursive(
    _atoms,
    lambda inner: st.one_of(
        st.builds("{}+{}".format, inner, inner), st.builds("{}-{}".format, inner, _atoms), st.builds("({})^{{2}}".format,
        inner),
        st.builds("\\frac{{{}}}{{{}}}".format, inner, _atoms.filter(lambda a: a != "0")), st.builds("\\sqrt{{{}}}".format,
        inner),
        st.builds("{} \\cdot {}".format, _atoms, _atoms), st.builds("\\left({}\\right)".format, inner),
    ),
    max_leaves=5,
)  # fmt: skip
_compound = st.one_of(
    st.lists(_atoms, min_size=2, max_size=4).map(lambda parts: f"({', '.join(parts)})"),
    st.tuples(_atoms, _atoms).map(lambda ends: f"[{ends[0]}, {ends[1]})"),
    st.sets(st.integers(0, 50).map(str), min_size=2, max_size=4).map(lambda parts: f"\\{{{', '.join(sorted(parts))}\\}}"),
    st.sampled_from(("\\text{Paris}", "\\text{even}", "\\infty", "\\emptyset", "90^\\circ", "x=5", "50\\%", "\\$7",
    "12 \\text{ cm}",
                     "10:30", "\\begin{pmatrix} 1 & 2 \\\\ 3 & 4 \\end{pmatrix}", "(-\\infty, 3]", "3:4", "x \\ge 2", "A",
                     "(B)",
                     "2^{10}", "4.5e-7", "1\\,000", "3\\frac{1}{2}", "\\pm 2", "1,2", "-\\frac{\\sqrt{3}}{2}", "2\\sqrt{3}i")),
)  # fmt: skip


def _check_reflexive(given: tuple[str, str]) -> str | None:
    answer, frame = given
    try:
        for grader in GRADERS:
            verdict = GRADERS[grader](answer, frame.format(answer), True)
            if verdict.status == "error":
                expect("cannot be parsed" in verdict.detail and not read_answer(answer).values, f"{grader}: {verdict.detail}")
            else:
                expect(verdict.correct, f"{grader}: {answer!r} in {frame!r} is not taken for itself")
    except TooLong:
        return "timed out"
    return None


# ---- anything

_marks = ("\\boxed{", "\\fbox{", "}", "{", "\\{", "$", "$$", "\\[", "\\]", "\\(", "<think>", "</think>", "\\frac", "^", "_",
          "!", "%", "\\%", "\\text{", "\\sqrt", "9", "10", "1e9", "1,000", "x", ",", ".", "/", "-", " ", "\n", "\\\\",
          "\\begin{pmatrix}", "&", "\\end{pmatrix}", "\\infty", "\\pi", "(", ")", "[", "]", "=", "<", "answer is", "A", "B)",
          "\x1e", "\x1f", "\u2212", "\u0663", "\\sum", "\\int", "\\binom{5}{2}", "\\log", "\\circ", "and", "or", "\ud800",
          "\x00", "\u222a", "\\cup", "|", ":", ";", "~")  # fmt: skip
_hostile = st.lists(st.sampled_from(_marks) | TEXTS, max_size=14).map("".join)


def _check_texts(given: tuple[str, str]) -> str | None:
    """The parts that are said to be linear in the length, and the graders themselves, on whatever a policy may write."""
    answer, text = given
    last_boxed(text), boxes(text), normalise(text), numeral(text), without_percent(text), read(text)
    expect(with_boxes(text, lambda inner: inner) == text, "boxes with nothing changed give another text")
    ChoiceVerifier(True)(answer, text, True), ChoiceVerifier(False)(answer, text, True)
    try:
        for name, grader in GRADERS.items():
            verdict = grader(answer, text, True)
            expect(verdict.status == "ok" or "cannot be parsed" in verdict.detail, f"{name}: {verdict}")
            for golds in (join_golds([answer, text]), for_grader(name, answer)):
                BenchmarkVerifier(False)(golds, text, True) if golds.startswith(name + "\x1f") else grader(golds, text, True)
    except TooLong:
        return "timed out"  # a RewardPool kills it and counts it in reward/timeout
    return None


def _check_cut(given: tuple[str, str]) -> None:
    """What is not finished, or has its thoughts not closed, earns nothing, whatever it holds."""
    answer, text = given
    for grader in (*GRADERS.values(), ChoiceVerifier(False)):
        expect(not grader(answer, text, False).correct, "a cut response is right")
    for thinking in (MathVerifier(True), OatVerifier(True), ChoiceVerifier(True)):
        if "</think>" not in text:
            expect(not thinking(answer, f"{text}\\boxed{{{answer}}}", True).correct, "thoughts that are not closed are right")


@functools.cache
def _pool() -> RewardPool:
    return RewardPool(BenchmarkVerifier(False), 1, 2.0, 1024)


def _check_pool(given: list[tuple[str, str]]) -> str | None:
    """As the product calls graders: in a child, which is killed where it takes too long."""
    items = [(for_grader(grader, gold), text, True) for gold, text in given for grader in ("oat", "math_verify", "choice")]
    verdicts = _pool().score([item for item in items if all(_sendable(part) for part in item[:2])])
    for verdict in verdicts:
        expect(verdict.status != "error" or "cannot be parsed" in verdict.detail, f"in the pool: {verdict.detail}")
    return "timed out" if any(verdict.status == "timeout" for verdict in verdicts) else None


def _sendable(text: str) -> bool:
    return "\x1f" not in text.partition("\x1f")[2]


# ---- letters

_letters = st.sampled_from("ABCDEFGHIJ")
_dresses = ("{}", "({})", "\\text{{{}}}", "{}) some words", "\\textbf{{({})}}", "{}.", "$\\mathrm{{{}}}$", "{}: it is so",
            "\\text{{Option {}}}", "{} ")  # fmt: skip


def _check_letter(given: tuple[str, str, str, str]) -> None:
    gold, other, dress, frame = given
    choice = ChoiceVerifier(False)
    expect(choice(gold, frame.format(dress.format(gold)), True).correct, f"{dress.format(gold)!r} does not choose {gold}")
    if other != gold:
        expect(not choice(gold, frame.format(dress.format(other)), True).correct, f"{dress.format(other)!r} chooses {gold}")


def _check_values(given: tuple[str, str]) -> None:
    one, other = given
    if read(one) is not None:
        expect(same_value(one, one), f"{one!r} has another value than itself")
    expect(same_value(one, other) == same_value(other, one), f"{one!r} and {other!r} are equal one way only")


_pairs = st.tuples(_formulas | _compound | _hostile, _hostile)
KINDS = (
    Kind("numbers for graders", _numbers(), _check_number, deadline_s=LIMIT_S),
    Kind("formulas for graders", st.tuples(_formulas | _compound, st.sampled_from(FRAMES)), _check_reflexive,
    deadline_s=LIMIT_S),
    Kind("texts for graders", _pairs, _check_texts, deadline_s=LIMIT_S),
    Kind("cut responses", _pairs, _check_cut, deadline_s=LIMIT_S),
    Kind("values of formulas", st.tuples(_formulas, _formulas), _check_values, deadline_s=LIMIT_S),
    Kind("letters for graders", st.tuples(_letters, _letters, st.sampled_from(_dresses), st.sampled_from(FRAMES)),
    _check_letter,
         deadline_s=LIMIT_S, round=200),
    Kind("texts in the pool of graders", st.lists(_pairs, min_size=1, max_size=6), _check_pool, deadline_s=90.0, round=20),
)  # fmt: skip
