import signal
import threading

import pytest

from nemo_amft.tasks.math.verifier import MathVerifier, final_part
from nemo_amft.tasks.rewards import RewardPool

THINKING = MathVerifier(thinking=True)
PLAIN = MathVerifier(thinking=False)


@pytest.mark.parametrize(
    ("answer", "final", "reward"),
    [
        ("72", r"The answer is \boxed{72}.", 1.0),
        ("72", r"The answer is \boxed{73}.", 0.0),
        ("72", "So it is 72.", 1.0),  # no bonus for a box, and no need of one
        ("142.0", r"\boxed{142}", 1.0),  # AMC's gold answers are floats
        ("-4.0", r"\boxed{-4}", 1.0),
        ("025", r"\boxed{25}", 1.0),  # AIME's have three digits
        ("1,234", r"\boxed{1234}", 1.0),
        ("1234", r"\boxed{1,234}", 1.0),
        (r"11,\! 111,\! 111,\! 100", r"\boxed{11111111100}", 1.0),
        (r"50\%", r"\boxed{50\%}", 1.0),
        (r"50\%", r"\boxed{5\%}", 0.0),
        (r"\boxed{204}", r"\boxed{204}", 1.0),  # delimiters of its own
        ("$57$", r"\boxed{57}", 1.0),
        (r"\(57\)", r"\boxed{57}", 1.0),
        ("$69$,$84$", r"\boxed{69, 84}", 1.0),
        (r"\$32,\!348", r"\boxed{32348}", 1.0),  # a price's sign is no delimiter
        (r"5.4 \text{ cents}", r"\boxed{5.4}", 1.0),
        ("10", r"\boxed{10 \text{ cm}}", 1.0),
        (r"336^\circ", r"\boxed{336}", 1.0),
        ("4.5e33", r"\boxed{4.5 \times 10^{33}}", 1.0),  # Minerva's scientific notation
        ("4.5e33", r"\boxed{4.5e33}", 1.0),
        ("1e-5", r"\boxed{0.00001}", 1.0),
        ("4.5e33", r"\boxed{4.5 \times 10^{32}}", 0.0),
        (r"\frac{1}{2 n+2}", r"\boxed{\frac{1}{2(n+1)}}", 1.0),
        (r"\left( 3, \frac{\pi}{2} \right)", r"\boxed{(3, \pi/2)}", 1.0),
        (r"\text{east}", r"\boxed{\text{east}}", 1.0),
        ("C", r"\boxed{C}", 1.0),
        ("C", r"\boxed{D}", 0.0),
        ("3", r"\boxed{}", 0.0),
        ("3", "", 0.0),
        ("1", r"either \boxed{1} or \boxed{2}", 0.0),  # hedging does not pay
    ],
)
def test_hard_gold_answers(answer, final, reward):
    verdict = THINKING(answer, f"Let me see.\n</think>\n\n{final}", True)
    assert (verdict.reward, verdict.correct, verdict.status) == (reward, reward == 1.0, "ok")
    assert PLAIN(answer, final, True).reward == reward


@pytest.mark.parametrize(
    ("response", "thinking", "expected"),
    [
        ("a</think>b", True, "b"),
        ("a</think>b</think>c", True, "c"),
        ("a", True, None),
        ("a</think>b<think>c", True, None),
        ("<think>\na</think>b", True, "b"),
        ("b", False, "b"),
        ("<think>a</think>b", False, "b"),
        ("<think>a", False, None),
    ],
)
def test_only_what_follows_closed_thoughts_is_graded(response, thinking, expected):
    assert final_part(response, thinking) == expected


def test_the_right_answer_inside_unclosed_thoughts_earns_nothing():
    assert THINKING("5", r"It is \boxed{5}.", True).reward == 0.0
    assert PLAIN("5", r"It is \boxed{5}.", True).reward == 1.0


def test_a_truncated_response_earns_nothing():
    assert THINKING("5", r"a</think>\boxed{5}", False).reward == 0.0


def test_a_gold_answer_that_cannot_be_read_is_an_error_and_not_a_wrong_response():
    verdict = PLAIN("$$", r"\boxed{5}", True)
    assert (verdict.reward, verdict.status) == (0.0, "error")
    assert "'$$'" in verdict.detail


@pytest.mark.parametrize("bomb", [r"\boxed{9^{9^{9^{9}}}}", "9^9^9^9", r"\boxed{((9!)!)!}"])
def test_an_answer_built_to_run_for_ever_is_killed_and_its_neighbours_are_judged(bomb):
    good = ("5", r"\boxed{5}", True)
    with RewardPool(PLAIN, workers=1, timeout_s=1.0, memory_mb=1024) as pool:
        verdicts = pool.score([good, ("5", bomb, True), good])
    assert [verdict.reward for verdict in verdicts] == [1.0, 0.0, 1.0]
    assert verdicts[1].status == "timeout"


def test_no_signal_alarm_is_left_or_needed():
    before = signal.getsignal(signal.SIGALRM)
    verdicts = []
    thread = threading.Thread(target=lambda: verdicts.append(PLAIN("5", r"\boxed{5}", True)))
    thread.start()
    thread.join()
    assert verdicts[0].reward == 1.0
    assert signal.getsignal(signal.SIGALRM) == before
