"""Demonstrations go on where the chat template ends a prompt."""

import pytest

from nemo_amft.data.thoughts import Thoughts, check_thinking, fit_thoughts, thoughts_after
from nemo_amft.tasks.math.verifier import MathVerifier
from nemo_amft.types import Example, UserError

OPEN, NONE, CLOSED = Thoughts("open", "\n"), Thoughts("none"), Thoughts("closed")
THINKS, PLAIN = "<think>\nadd\n</think>\n\\boxed{2}", "\\boxed{2}"


def shown(demonstration, origin="a.jsonl, line 1") -> Example:
    return Example("a/0", ({"role": "user", "content": "1+1?"},), "2", demonstration, metadata={"origin": origin})


@pytest.mark.parametrize(
    ("prompt", "found"),
    [
        ("<|assistant|>\n", NONE),
        ("<think> is a tag<|assistant|>", NONE),
        ("<|assistant|><think>", Thoughts("open")),
        ("<|assistant|><think>\n", OPEN),
        ("<|assistant|>\n<think>\n\n</think>\n\n", CLOSED),
    ],
)
def test_how_a_prompt_ends(prompt, found):
    assert thoughts_after(prompt) == found


@pytest.mark.parametrize(
    ("thoughts", "demonstration", "fitted"),
    [
        (OPEN, THINKS, "add\n</think>\n\\boxed{2}"),
        (Thoughts("open"), THINKS, "\nadd\n</think>\n\\boxed{2}"),
        (OPEN, "add\n</think>\n\\boxed{2}", "add\n</think>\n\\boxed{2}"),
        (NONE, THINKS, THINKS),
        (NONE, "add\n</think>\n\\boxed{2}", THINKS),
        (OPEN, (THINKS, "Sure?", THINKS), ("add\n</think>\n\\boxed{2}", "Sure?", "add\n</think>\n\\boxed{2}")),
    ],
)
def test_thoughts_are_opened_once_by_the_template_or_by_the_response(thoughts, demonstration, fitted):
    (example,) = fit_thoughts([shown(demonstration)], True, thoughts)
    assert example.demonstration == fitted
    last = fitted[-1] if isinstance(fitted, tuple) else fitted
    assert MathVerifier(thinking=True)("2", last, True).correct


@pytest.mark.parametrize(
    ("thinking", "thoughts", "demonstration"),
    [(False, NONE, THINKS), (None, NONE, PLAIN), (False, CLOSED, PLAIN), (True, OPEN, None)],
)
def test_what_fits_is_left_as_it_is(thinking, thoughts, demonstration):
    example = shown(demonstration)
    assert fit_thoughts([example], thinking, thoughts) == [example]


@pytest.mark.parametrize(
    ("thinking", "thoughts", "demonstration", "said"),
    [
        (True, NONE, PLAIN, "found no '</think>', expected thoughts, as task.thinking is true"),
        (None, OPEN, PLAIN, "found no '</think>', expected thoughts, as the chat template ends a prompt with '<think>'"),
        (False, CLOSED, THINKS, "found thoughts, expected none, as the chat template ends a prompt with '</think>'"),
    ],
)
def test_demonstrations_whose_thoughts_cannot_fit_are_refused_by_name(thinking, thoughts, demonstration, said):
    with pytest.raises(UserError) as raised:
        fit_thoughts([shown(demonstration, "b.jsonl, line 3")], thinking, thoughts)
    assert str(raised.value).startswith(f"b.jsonl, line 3: demonstration: {said}")


def test_task_and_template_have_to_agree_in_both_directions(caplog):
    for thinking, thoughts in ((True, OPEN), (False, NONE), (False, CLOSED), (None, OPEN)):
        check_thinking(thinking, thoughts)
    assert not caplog.messages
    check_thinking(True, NONE)
    assert "one without thoughts counts as wrong" in caplog.text
    for thinking, thoughts, said in ((True, CLOSED, "found true, expected false"), (False, OPEN, "found false, expected true")):
        with pytest.raises(UserError, match=rf"^task\.thinking: {said}, as the chat template ends a prompt with"):
            check_thinking(thinking, thoughts)
