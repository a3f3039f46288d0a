"""What attempts earn, and what is said after them."""

from __future__ import annotations

import json
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemo_amft.tasks.general_points.cards import Card
from nemo_amft.tasks.general_points.environment import OneAttempt, PointsEnvironment, write_answer
from nemo_amft.tasks.rewards import RewardPool

HAND = (Card(3, "spades"), Card(8, "clubs"), Card(11, "spades"), Card(2, "clubs"))
ANSWER = write_answer(HAND, "ten")  # 3 8 10 2

RIGHT, WRONG, BY_ZERO, NUMBERS, ILLEGAL = "8+3*2+10=24", "8*3+10-2", "8/(3*2-10+3)", "8*3", "8*3)"
ATTEMPTS = {RIGHT: 5.0, "(10-2)*(8-3)": -1.0, NUMBERS: -2.0, ILLEGAL: -3.0}


def say(formula: str, cards=("3", "8", "J", "2")) -> str:
    return json.dumps({"cards": list(cards), "number": [3, 8, 10, 2], "formula": formula})


@pytest.mark.parametrize(
    ("formula", "reward", "detail"),
    [
        (RIGHT, 5, ""),
        ("10+8+2*3", 5, ""),
        ("(10-2)*(8-3)", -1, "the formula equals 40, not 24"),
        ("8/3+10+2", -1, "the formula equals 44/3, not 24"),
        ("8/(10-2*3-2-2)", -2, "the formula uses 8 10 2 3 2 2"),
        ("24", -2, "the formula uses 24, not each card's number once"),
        ("8*3", -2, "the formula uses 8 3"),
        ("8+3*2+11", -2, "the formula uses 8 3 2 11"),  # J counts 10
        ("8+3*2+10+1-1", -2, "the formula uses 8 3 2 10 1 1"),
        ("82-310", -2, "the formula uses 82 310"),
        ("8+3*2+J", -3, "the formula is illegal: 'J' is no digit"),
        ("8+3*2+10=25", -3, "the formula is illegal: only 24 may follow '='"),
        ("8+3*2+10)", -3, "the formula is illegal: ')' is out of place"),
        ("-8+3*2+10", -3, "the formula is illegal: '-' stands"),
        ("", -3, "the formula is illegal: it ends"),
    ],
)
def test_an_attempt_earns_what_the_original_code_gave(formula, reward, detail):
    verdict = OneAttempt(PointsEnvironment())(ANSWER, say(formula), True)
    assert (verdict.reward, verdict.correct, verdict.status) == (reward, reward == 5, "ok")
    assert verdict.detail.startswith(detail)
    assert verdict.follow_up is None
    binary = OneAttempt(PointsEnvironment(reward="binary"))(ANSWER, say(formula), True)
    assert (binary.reward, binary.correct) == (float(reward == 5), reward == 5)


def test_a_division_by_zero_is_legal_and_wrong():
    verdict = PointsEnvironment()(write_answer([Card(2, "clubs")] * 2 + [Card(5, "clubs")], "ten"), [say("5/(2-2)")], True)
    assert (verdict.reward, verdict.detail) == (-1, "the formula divides by zero")


def test_no_answer_is_illegal():
    assert OneAttempt(PointsEnvironment())(ANSWER, "I do not know", True).reward == -3
    assert OneAttempt(PointsEnvironment(style="compact"))(ANSWER, RIGHT, True).reward == -3
    assert OneAttempt(PointsEnvironment(style="compact"))(ANSWER, "3*2=6;8+6=14#" + RIGHT, True).reward == 5


@pytest.mark.parametrize(
    ("cards", "formula", "reward"),
    [
        (("3", "8", "J", "2"), RIGHT, 5),
        (("2", "J", "8", "3"), RIGHT, 5),  # in any order
        (("3", "8", "Q", "2"), RIGHT, -1.5),  # of the same number, but another card
        (("3", "8", "J"), RIGHT, -1.5),
        (("3", "3", "8", "J"), RIGHT, -1.5),
        (("3", "8", "Q", "2"), ILLEGAL, -1.5),  # and nothing else is looked at
        (("3", "8", "X", "2"), NUMBERS, -1.5),
        (("3", "8", "J", "2"), ILLEGAL, -3),
        (("3", "8", "J", "2"), NUMBERS, -2),
    ],
)
def test_cards_have_to_be_read_right_from_a_picture(cards, formula, reward):
    environment = PointsEnvironment(cards_are_read=True)
    assert environment(ANSWER, [say(formula, cards)], True).reward == reward
    # As text there was nothing to read, so nothing to misread.
    assert (
        PointsEnvironment()(ANSWER, [say(formula, cards)], True).reward
        == PointsEnvironment()(ANSWER, [say(formula)], True).reward
    )


def test_a_picture_s_answer_without_cards_is_misread():
    assert PointsEnvironment(cards_are_read=True)(ANSWER, [json.dumps({"formula": RIGHT})], True).reward == -1.5


def test_a_response_cut_by_the_limit_is_illegal_and_ends_the_episode():
    verdict = PointsEnvironment(max_turns=3)(ANSWER, [say(RIGHT)], False)
    assert (verdict.reward, verdict.correct, verdict.follow_up) == (-4, False, None)  # -3, and -1 as the episode ends
    assert PointsEnvironment()(ANSWER, [say(RIGHT)], False).reward == -3
    assert PointsEnvironment(reward="binary")(ANSWER, [say(RIGHT)], False).reward == 0


def test_an_episode_earns_the_sum_of_its_attempts():
    environment = PointsEnvironment(max_turns=3)
    wrong = say("(10-2)*(8-3)")
    assert [environment(ANSWER, said, True).reward for said in ([wrong], [wrong, wrong], [wrong, wrong, wrong])] == [-1, -2, -4]
    assert environment(ANSWER, [wrong, say(RIGHT)], True).reward == 4
    assert environment(ANSWER, [say(ILLEGAL), say(NUMBERS), say(RIGHT)], True).reward == 0
    binary = PointsEnvironment(max_turns=3, reward="binary")
    assert [binary(ANSWER, said, True).reward for said in ([wrong], [wrong, say(RIGHT)], [wrong] * 3)] == [0, 1, 0]


def test_an_earlier_success_is_worth_more():
    environment, wrong = PointsEnvironment(max_turns=5), say(NUMBERS)
    returns = [environment(ANSWER, [wrong] * failures + [say(RIGHT)], True).reward for failures in range(5)]
    assert returns == sorted(returns, reverse=True)
    assert min(returns) > environment(ANSWER, [wrong] * 5, True).reward


@pytest.mark.parametrize(
    ("formula", "message", "short"),
    [
        ("(10-2)*(8-3)", "That fails: the formula equals 40, not 24. Try again, in the same form.", "no:40="),
        ("8*3", "That fails: the formula uses 8 3, not each card's number once. Try again, in the same form.", "no:numbers="),
        (
            "8*",
            "That fails: the formula is illegal: it ends where a number is expected. Try again, in the same form.",
            "no:form=",
        ),
    ],
)
def test_the_follow_up_states_the_failure(formula, message, short):
    assert PointsEnvironment(max_turns=2)(ANSWER, [say(formula)], True).follow_up == message
    assert PointsEnvironment(max_turns=2, style="compact")(ANSWER, ["#" + formula], True).follow_up == short


def test_there_is_no_follow_up_after_success_or_the_last_attempt():
    for turns in range(1, 6):
        environment = PointsEnvironment(max_turns=turns)
        for said in range(1, turns + 1):
            verdict = environment(ANSWER, [say(NUMBERS)] * said, True)
            assert (verdict.follow_up is None) == (said == turns)
            assert environment(ANSWER, [say(NUMBERS)] * (said - 1) + [say(RIGHT)], True).follow_up is None


@given(
    st.lists(st.sampled_from(sorted(ATTEMPTS)), min_size=1, max_size=7),
    st.integers(1, 5),
    st.sampled_from(["original", "binary"]),
)
def test_any_conversation_is_worth_its_attempts_up_to_the_first_success_or_the_limit(formulas, max_turns, reward):
    verdict = PointsEnvironment(max_turns=max_turns, reward=reward)(ANSWER, [say(formula) for formula in formulas], True)
    counted = formulas[:max_turns]
    if RIGHT in counted:
        counted = counted[: counted.index(RIGHT) + 1]
    success = RIGHT in counted
    over = not success and max_turns > 1 and len(counted) == max_turns
    assert verdict.correct == success
    assert verdict.reward == (sum(ATTEMPTS[f] for f in counted) - over if reward == "original" else float(success))
    assert (verdict.follow_up is None) == (success or len(counted) == max_turns)


@given(st.lists(st.text(max_size=80), min_size=1, max_size=3), st.booleans(), st.sampled_from(["json", "compact"]))
def test_any_text_gets_a_verdict(responses, finished, style):
    verdict = PointsEnvironment(max_turns=3, style=style)(ANSWER, responses, finished)
    assert (verdict.correct, verdict.status) == (False, "ok")
    assert verdict.reward == -3 * len(responses) - (len(responses) == 3 or not finished)


def test_it_judges_in_child_processes():
    environment = PointsEnvironment(target=24, cards_are_read=True)
    assert pickle.loads(pickle.dumps(environment)) == environment
    with RewardPool(OneAttempt(environment), 1, 10.0, 512) as pool:
        verdicts = pool.score([(ANSWER, say(RIGHT), True), (ANSWER, say(NUMBERS), True), (ANSWER, "{" * 100_000, True)])
    assert [verdict.reward for verdict in verdicts] == [5, -2, -3]
