"""What is read as a formula or as an answer, and what is not."""

from __future__ import annotations

import ast
import contextlib
import json
import re
import time
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemo_amft.tasks.general_points.answers import AnswerError, read_compact, read_json
from nemo_amft.tasks.general_points.formula import MAX_DEPTH, MAX_LENGTH, FormulaError, parse


@pytest.mark.parametrize(
    ("text", "value", "numbers"),
    [
        ("8/(3-8/3)", 24, (8, 3, 8, 3)),
        ("8/(3-8/3)=24", 24, (8, 3, 8, 3)),
        (" ( 10 - 4 ) * 4 * 1 = 24 ", 24, (10, 4, 4, 1)),
        ("2+3*4-1", 13, (2, 3, 4, 1)),
        ("8-3-2-1", 2, (8, 3, 2, 1)),  # from left to right
        ("8/4/2", 1, (8, 4, 2)),
        ("1/3", Fraction(1, 3), (1, 3)),
        ("((((7))))", 7, (7,)),
        ("0", 0, (0,)),
        ("3/(2-2)", None, (3, 2, 2)),
        ("0*(3/0)+1", None, (0, 3, 0, 1)),  # what divides by zero has no value, whatever follows
        ("1+2=24", 3, (1, 2)),  # the claim is no part of the formula, and not believed
    ],
)
def test_formulas(text, value, numbers):
    formula = parse(text)
    assert (formula.value, formula.numbers) == (value, numbers)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "ends where a number is expected"),
        ("=24", "ends where a number is expected"),
        ("24=8*3", "only 24 may follow '='"),
        ("8*3=25", "only 24 may follow '='"),
        ("8*3=24=24", "only 24 may follow '='"),
        ("8*3=", "only 24 may follow '='"),
        ("8*3=\u0662\u0664", "only 24 may follow '='"),
        ("-3+27", "'-' stands where a number is expected"),
        ("3*-8", "'-' stands where a number is expected"),
        ("3**8", "'*' stands where a number is expected"),
        ("3//8", "'/' stands where a number is expected"),
        ("2^8", "'^' is no digit"),
        ("3 8", "'8' is out of place"),
        ("(3)(8)", "'(' is out of place"),
        ("3(8)", "'(' is out of place"),
        ("(3+8", "a parenthesis is not closed"),
        ("3+8)", "')' is out of place"),
        ("()", "')' stands where a number is expected"),
        ("8.0*3", "'.' is no digit"),
        ("08*3", "'08' has a leading zero"),
        ("8*3\n", "'\\n' is no digit"),
        ("8\t*3", "'\\t' is no digit"),
        ("\u0668*\u0663", "'\\u0668' is no digit"),  # Arabic digits
        ("8\u00b2", "'\\xb2' is no digit"),
        ("\uff18*3", "'\\uff18' is no digit"),  # full-width
        ("8\u00d73", "'\\xd7' is no digit"),
        ("J*2", "'J' is no digit"),
        ("abs(8)*3", "'a' is no digit"),
        ("__import__('os')", "'_' is no digit"),
        ("1e9", "'e' is no digit"),
        ("0x18", "'x' is no digit"),
        ("1_0", "'_' is no digit"),
        ("8*3;1", "';' is no digit"),
        ("1+" * 100 + "1", "201 characters, more than 200"),
        ("(" * 33 + "1" + ")" * 33, "more than 32 deep"),
        ("(" * 150, "more than 32 deep"),
    ],
)
def test_what_is_no_formula_is_refused_with_the_reason(text, reason):
    with pytest.raises(FormulaError) as error:
        parse(text)
    assert reason in str(error.value)


def test_length_and_depth_are_allowed_up_to_their_bounds():
    assert parse("(" * MAX_DEPTH + "1" + ")" * MAX_DEPTH).value == 1
    assert parse("9" * MAX_LENGTH).value == 10**MAX_LENGTH - 1


def test_the_target_is_whichever_the_game_has():
    assert parse("3*4=12", target=12).value == 12
    with pytest.raises(FormulaError):
        parse("3*4=24", target=12)


def by_the_interpreter(text: str) -> Fraction | None:
    """Value by Python's own grammar, restricted to ours: SyntaxError for what is not in it, None for a division by zero."""

    def value(node: ast.expr) -> Fraction:
        if isinstance(node, ast.Constant) and type(node.value) is int:
            return Fraction(node.value)
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add | ast.Sub | ast.Mult | ast.Div):
            left, right = value(node.left), value(node.right)
            names = {ast.Add: "__add__", ast.Sub: "__sub__", ast.Mult: "__mul__", ast.Div: "__truediv__"}
            return getattr(left, names[type(node.op)])(right)
        raise SyntaxError(node)

    if re.search(r"(?<![0-9])0[0-9]", text):
        raise SyntaxError("Python takes 00 for 0")
    tree = ast.parse(text.strip(), mode="eval")
    try:
        return value(tree.body)
    except ZeroDivisionError:
        return None


@given(st.text("0123456789+-*/() ", max_size=24))
def test_any_text_is_read_as_the_interpreter_reads_it(text):
    try:
        expected = by_the_interpreter(text)
    except SyntaxError:
        with pytest.raises(FormulaError):
            parse(text)
    else:
        formula = parse(text)
        assert formula.value == expected
        assert list(formula.numbers) == list(map(int, re.findall("[0-9]+", text)))


NUMBERS = st.integers(0, 99).map(str)
TREES = st.recursive(
    NUMBERS,
    lambda inner: st.builds("{0}{1}{2}".format, inner, st.sampled_from("+-*/"), inner) | inner.map("({})".format),
    max_leaves=12,
)


@given(TREES)
def test_any_formula_has_the_interpreters_value(text):
    assert parse(text[:MAX_LENGTH]).value == by_the_interpreter(text)


@given(st.text(max_size=300))
def test_any_text_at_all_is_a_formula_or_refused(text):
    with contextlib.suppress(FormulaError):
        assert all(type(number) is int for number in parse(text).numbers)


# ---- answers in responses

GOOD = '{"cards": ["A", "2", "10", "K"], "number": [1, 2, 10, 10], "formula": "1+2"}'


@pytest.mark.parametrize(
    ("response", "formula", "cards"),
    [
        (GOOD, "1+2", ("A", "2", "10", "K")),
        (f"<think>\nLet me see {{ 1 }}\n</think>\n```json\n{GOOD}\n```\nDone.", "1+2", ("A", "2", "10", "K")),
        ('{"formula": "8*3"} no, ' + GOOD, "1+2", ("A", "2", "10", "K")),  # the last counts
        (GOOD + ' {"formula": "8*3"}', "8*3", None),
        ('{"formula": "8*3", "cards": [2, "j", " Q "]}', "8*3", ("2", "J", "Q")),
        ('{"formula": "8*3", "cards": ["B"]}', "8*3", None),
        ('{"formula": "8*3", "cards": "A"}', "8*3", None),
        ('{"formula": "8*3", "cards": [["A"]]}', "8*3", None),
        ('{"formula": "8*3", "cards": [NaN, Infinity]}', "8*3", None),
        ('{"formula": "8*3", "number": [NaN, 1e999, ' + "9" * 1500 + "]}", "8*3", None),
        ('{"formula": "8*3", "note": {"formula": "1"}}', "8*3", None),  # what stands in it is not an answer of its own
        ('{"formula": "8*3", "formula ": "1"}', "8*3", None),
        ('{broken {"formula": "8*3"}', "8*3", None),
        ('{"formula": "{\\"formula\\": 1}"}', '{"formula": 1}', None),
        ('{"formula": "8\\u002a3"}', "8*3", None),
        ("x" * 100_000 + GOOD, "1+2", ("A", "2", "10", "K")),
        ("{" * 100_000 + GOOD, "1+2", ("A", "2", "10", "K")),
    ],
)
def test_the_last_json_object_is_the_answer(response, formula, cards):
    answer = read_json(response)
    assert (answer.formula, answer.cards) == (formula, cards)


@pytest.mark.parametrize(
    ("response", "reason"),
    [
        ("", "no JSON object"),
        ("(8-4)*6", "no JSON object"),
        ('{"formula": "8*3"', "no JSON object"),
        ("{'formula': '8*3'}", "no JSON object"),
        ('["formula", "8*3"]', "no JSON object"),
        ('{"formula": "8*3",}', "no JSON object"),
        ("{}", 'no key "formula"'),
        ('{"answer": ' + GOOD + "}", 'no key "formula"'),
        (GOOD + "{}", 'no key "formula"'),
        ('{"formula": "8*3", "formula": "1"}', "'formula' comes twice"),
        ('{"formula": "8*3", "cards": [], "cards": []}', "'cards' comes twice"),
        ('{"formula": 24}', '"formula" is no text'),
        ('{"formula": null}', '"formula" is no text'),
        ('{"formula": ["8*3"]}', '"formula" is no text'),
        ('{"formula": NaN}', '"formula" is no text'),
        (GOOD + " " * 5000, "no JSON object"),  # an answer ends the response
        ("{" * 100_000, "no JSON object"),
        ('{"a":' * 20_000, "no JSON object"),
        ("[" * 50_000 + "{", "no JSON object"),
        ('{"a":[' * 20_000, "no JSON object"),
        ('"' * 100_000, "no JSON object"),
        ("\\" * 100_000, "no JSON object"),
        ("\ud800{", "no JSON object"),
    ],
)
def test_a_response_without_an_answer_says_what_is_missing(response, reason):
    started = time.process_time()
    with pytest.raises(AnswerError) as error:
        read_json(response)
    assert reason in str(error.value)
    assert time.process_time() - started < 1


@given(st.text(max_size=200) | st.text('{}[]":,\\ aformul18*N', max_size=200))
def test_any_response_has_an_answer_or_a_reason(response):
    with contextlib.suppress(AnswerError):
        assert isinstance(read_json(response).formula, str)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["formula", "cards", "a"]), inner, max_size=3),
    max_leaves=8,
)


@given(
    st.text(st.characters(exclude_characters="{}"), max_size=30),
    JSON,
    st.text(st.characters(exclude_characters="{}"), max_size=30),
)
def test_any_object_with_a_text_as_formula_is_found_in_any_text(before, other, after):
    written = json.dumps({"other": other, "formula": "8*3"})
    assert read_json(before + written + after).formula == "8*3"


@pytest.mark.parametrize(
    ("response", "formula"),
    [("8*3=24#8*3", "8*3"), ("#1#8*3", "8*3"), ("# 8*3 \n", "8*3"), ("#", ""), ("x" * 100_000 + "#1", "1")],
)
def test_a_compact_answer_follows_the_last_mark(response, formula):
    assert read_compact(response).formula == formula


def test_a_compact_response_without_a_mark_has_no_answer():
    with pytest.raises(AnswerError, match="no formula after '#'"):
        read_compact("8*3=24")
