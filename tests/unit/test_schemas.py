"""What a row says: problems, answers and demonstrations in the columns that sets keep them in, and what must be refused."""

from __future__ import annotations

from collections import Counter
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemo_amft.data import choices, schemas, shown
from nemo_amft.data.rows import RowError
from tests.unit.published_rows import CHOICES, ROWS

USER, SYSTEM = {"role": "user", "content": "1+1?"}, {"role": "system", "content": "Think."}


def read(row):
    schema = schemas.schema_of(row)
    assert schema is not None, schemas.refusal(row)
    problem = schema.problem(row)
    shown = schema.demonstration(row, problem)
    schemas.refuse_left_out(row, problem, shown, imitated=True)
    return problem, shown


def assistant(content):
    return {"role": "assistant", "content": content}


@pytest.mark.parametrize("name", ROWS)
def test_rows_with_a_free_answer(name):
    row, answer = ROWS[name]
    found, _ = read(row)
    assert (found.answer, found.choice) == (answer, False)
    assert found.messages[-1]["content"] == row.get("problem", row.get("question"))


# ---- answers


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        ("2", "2"),
        (2, "2"),
        (2.5, "2.5"),
        (1e-7, "0.0000001"),
        (Decimal("2.5000"), "2.5"),
        (Decimal("1E+3"), "1000"),
        (Decimal("12345678901234567890123456789012345678.10"), "12345678901234567890123456789012345678.1"),
        (["1", 2], "1\x1e2"),
        ('["1"]', "1"),
        ('["\\\\frac{1}{2}", "0.5"]', "\\frac{1}{2}\x1e0.5"),
        ("[1, 2]", "[1, 2]"),  # an interval
        ('["a", b]', '["a", b]'),
    ],
)
@pytest.mark.parametrize("nested", [False, True])
def test_an_answer_is_a_text_a_number_or_a_list_of_them(gold, answer, nested):
    row = {"prompt": [USER], "reward_model": {"ground_truth": gold}} if nested else {"problem": "1+1?", "answer": gold}
    assert read(row)[0].answer == answer


@pytest.mark.parametrize(
    ("gold", "message"),
    [
        (float("nan"), "answer: found nan, expected a finite number"),
        (float("inf"), "answer: found inf, expected a finite number"),
        (Decimal("NaN"), "answer: found Decimal('NaN'), expected a finite number"),
        ("NaN", "answer: found 'NaN', expected an answer: this is what a missing number is written as"),
        (True, "answer: found True, expected a non-empty text, a number or a list of them"),
        (["1", None], "answer[1]: found null, expected a non-empty text, a number or a list of them"),
        (["1", "2\x1e3"], "answer[1]: found '2\\x1e3', expected an answer without the characters U+001E and U+001F"),
        ('[{"input": "1"}]', "answer[0]: found {'input': '1'}, expected a non-empty text, a number or a list of them"),
        ("\ud83d", "answer: found '\\ud83d', expected a text without lone surrogates"),
        ("a\0b", "answer: found 'a\\x00b', expected a text without the character U+0000"),
    ],
)
def test_what_is_no_answer_is_named(gold, message):
    with pytest.raises(RowError) as raised:
        read({"problem": "1+1?", "answer": gold})
    assert str(raised.value) == message


@pytest.mark.parametrize("answer", ["word " * 101, "First.\nThen 2.", "2\n#### 2"])
def test_a_response_in_place_of_a_final_answer_is_a_demonstration(answer):
    row = {"question": "1+1?", "answer": answer}
    found = schemas.FREE.problem(row)
    assert (found.answer, schemas.FREE.demonstration(row, found)) == (None, answer)
    assert found.wanted.startswith("a final answer alone")


# ---- demonstrations

OPENR1 = {"problem": "1+1?", "answer": "2", "solution": "Add.", "generations": ["cut", "wrong", "right"]}


@pytest.mark.parametrize(
    ("row", "shown"),
    [
        ({"prompt": "1+1?", "answer": "2", "demonstration": "It is 2."}, "It is 2."),
        ({"prompt": "1+1?", "completion": "It is 2."}, "It is 2."),
        ({"prompt": [USER], "completion": [assistant("It is 2.")]}, "It is 2."),
        ({"prompt": [USER], "completion": [assistant("2"), USER, assistant("Yes.")]}, ("2", "1+1?", "Yes.")),
        ({"prompt": [USER], "reward_model": {"ground_truth": "2"}, "target": "It is 2."}, "It is 2."),
        ({"problem": "1+1?", "expected_answer": "2", "generated_solution": "Add."}, "Add."),
        ({"question": "1+1?", "final_answer": ["2"], "solution": ["Add.", "Count."]}, "Add."),
        ({"prompt": "1+1?", "reward_model": {"ground_truth": "2"}, "solution": "2"}, None),  # the answer, once more
        ({"problem": "1+1?", "answer": "2", "messages": [USER, assistant("It is 2.")]}, "It is 2."),
        ({"question": "1+1?", "answer": "<<1+1=2>>2\n#### 2"}, "2\nThe answer is \\boxed{2}."),
        ({"question": "1+1?", "answer": "2\n#### 2", "response": "It is 2."}, "It is 2."),
        (OPENR1 | {"correctness_math_verify": [False, False, True]}, "right"),
        (OPENR1 | {"correctness_math_verify": [False] * 3, "correctness_llama": [False, False, True]}, "right"),
        (OPENR1 | {"correctness_math_verify": [True, False, True], "is_reasoning_complete": [False, True, True]}, "right"),
        (OPENR1 | {"correctness_math_verify": [False] * 3, "correctness_llama": None}, "Add."),
        (OPENR1 | {"is_reasoning_complete": [False, True, True]}, "wrong"),  # nobody looked
        (OPENR1 | {"generations": None}, "Add."),
    ],
)
def test_a_demonstration_is_found_where_sets_keep_it(row, shown):
    assert read(row)[1] == shown


@pytest.mark.parametrize(
    ("row", "content"),
    [
        ({"instruction": "Add.", "input": "1 and 1", "output": "2"}, "Add.\n\n1 and 1"),
        ({"instruction": "Add 1 and 1.", "input": "", "output": "2"}, "Add 1 and 1."),
        ({"query": "1+1?", "response": "2"}, "1+1?"),
        ({"input": "1+1?", "output": "2"}, "1+1?"),
    ],
)
def test_rows_to_be_imitated_need_no_answer(row, content):
    found, shown = read(row)
    assert (found.messages, found.answer, shown) == (({"role": "user", "content": content},), None, "2")


TURNS = [("system", "Think."), ("user", "1+1?"), ("assistant", "2"), ("user", "Sure?"), ("assistant", "Yes.")]


@pytest.mark.parametrize("words", ["messages", "sharegpt", "system column"])
def test_a_conversation_is_a_demonstration_of_all_its_turns(words):
    names = {"system": "system", "user": "human", "assistant": "gpt"}
    row = {"messages": [{"role": role, "content": content} for role, content in TURNS]}
    if words != "messages":
        row = {"conversations": [{"from": names[role], "value": content} for role, content in TURNS]}
    if words == "system column":
        row = {"system": "Think.", "conversations": row["conversations"][1:]}
    found, shown = read(row)
    assert (found.messages, found.answer, shown) == ((SYSTEM, USER), None, ("2", "Sure?", "Yes."))


def test_an_answer_beside_a_conversation_is_that_of_its_last_response():
    row = {"messages": [{"role": role, "content": content} for role, content in TURNS], "answer": "2"}
    found, shown = read(row)
    assert ([message["role"] for message in found.messages], shown) == (["system", "user", "assistant", "user"], "Yes.")
    assert read(row | {"messages": row["messages"][:2]})[1] is None


def test_the_content_of_a_message_may_come_in_parts_of_text():
    parts = [{"type": "text", "text": "1+"}, {"type": "text", "text": "1?"}]
    assert read({"messages": [{"role": "user", "content": parts}, assistant("2")]})[0].messages == (USER,)
    with pytest.raises(RowError, match=r"messages\[0\]\.content\[0\]: .* expected a part of type 'text'"):
        read({"messages": [{"role": "user", "content": [{"type": "image"}]}, assistant("2")]})


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ([USER], "messages[0].role: found 'user', expected 'assistant' in the last message"),
        ([SYSTEM, assistant("2")], "messages[1].role: found 'assistant', expected the user's message first"),
        ([USER, assistant("2"), assistant("3")], "messages[2].role: found 'assistant', expected 'user', in turns"),
        ([USER, {"role": "tool", "content": "2"}], "messages[1].role: found 'tool', expected 'system', 'user' or 'assistant'"),
        ([USER, assistant(None)], "messages[1].content: found null, expected a non-empty text"),
    ],
)
def test_a_conversation_without_turns_is_refused(said, message):
    with pytest.raises(RowError) as raised:
        read({"messages": said})
    assert str(raised.value) == message


# ---- options


@pytest.mark.parametrize("name", CHOICES)
def test_the_gold_letter_goes_with_its_option(name):
    found, _ = read(CHOICES[name])
    text = found.messages[-1]["content"]
    assert found.choice
    assert text.startswith("Which is red?\n\nA) ")
    assert text.endswith(f"\n\n{choices.INSTRUCTION}")
    assert f"\n{found.answer}) rose\n" in text


@pytest.mark.parametrize(
    ("options", "gold"),
    [
        (["sky", "rose", "leaf"], 1),
        (["sky", "rose", "leaf"], "b"),
        (["sky", "rose", "leaf"], "rose"),
        (["sky", "rose", "leaf"], Decimal(1)),
        (["A) sky", "B) rose", "C) leaf"], "B"),
        ({"A": "sky", "B": "rose", "C": None}, "B"),
        ([{"label": "X", "text": "sky"}, {"label": "Y", "text": "rose"}], "Y"),
        ({"text": ["sky", "rose"], "label": [1, 2]}, 2),  # a label, where there are labels
    ],
)
def test_options_and_golds_come_in_several_forms(options, gold):
    found, _ = read({"question": "Which is red?", "choices": options, "answer": gold})
    assert f"\n{found.answer}) rose\n" in found.messages[-1]["content"]


def test_a_demonstration_speaks_of_the_letters_that_the_row_has():
    options = [f"number {i}" for i in range(8)]
    found, shown = read({"question": "Which?", "options": options, "answer": "F", "solution": "It is F."})
    assert (found.answer, shown) == ("F", "It is F.")
    assert "\nF) number 5\n" in found.messages[-1]["content"]


@pytest.mark.parametrize(
    ("prompt", "labels", "gold", "answer"),
    [
        ("Red?\nA. sky\nB. rose\n", None, 1, "B"),
        ("Red? (a) sky (b) rose", ["a", "b"], "b", "b"),
        ("Red?\n1) sky\n2) rose", ["1", "2"], "2", "2"),
    ],
)
def test_a_prompt_that_has_the_options_behind_their_labels_is_left_as_it_is(prompt, labels, gold, answer):
    options = {"text": ["sky", "rose"], "label": labels} if labels else ["sky", "rose"]
    found, _ = read({"question": prompt, "choices": options, "answer": gold})
    assert (found.messages[0]["content"], found.answer, found.choice) == (prompt, answer, True)


def test_messages_that_list_the_options_are_left_as_they_are():
    prompt = [{"role": "user", "content": "Red?\nA. sky\nB. rose"}]
    found, _ = read({"prompt": prompt, "reward_model": {"ground_truth": "B"}, "choices": ["sky", "rose"]})
    assert (found.messages, found.answer, found.choice) == (tuple(prompt), "B", True)


@pytest.mark.parametrize("question", ["Is 1 less than 2?", "Which?\n- 1\n- 2"])
def test_options_that_a_question_speaks_of_are_listed_nevertheless(question):
    found, _ = read({"question": question, "choices": ["1", "2"], "answer": 1})
    assert found.messages[0]["content"].endswith(choices.INSTRUCTION)


def _lettered(question: str, options: list[str], gold: int) -> tuple[list[str], str]:
    found, _ = read({"question": question, "options": options, "answer": "ABCDEFGHIJ"[gold]})
    lines = found.messages[-1]["content"].removeprefix(question.strip()).split("\n\n")[1].split("\n")
    return [line[3:] for line in lines], found.answer


@given(st.integers(2, 10).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n - 1))), st.integers())
def test_options_are_the_same_in_another_order_and_the_answer_follows(sizes, number):
    n, gold = sizes
    options = [f"option {i}" for i in range(n)]
    shown, letter = _lettered(f"Question {number}?", options, gold)
    assert sorted(shown) == sorted(options)
    assert shown["ABCDEFGHIJ".index(letter)] == options[gold]
    assert _lettered(f"Question {number}?", options, gold) == (shown, letter)  # in every run


def test_the_gold_option_may_stand_anywhere():
    letters = Counter(_lettered(f"Question {i}?", ["a", "b", "c", "d"], 0)[1] for i in range(800))
    assert set(letters) == set("ABCD")
    assert all(150 <= count <= 250 for count in letters.values()), letters  # 200 expected, 12 the standard deviation


def test_the_order_of_options_is_frozen():
    # Another order would be another benchmark: scores of older versions could not be compared.
    assert _lettered("Which is red?", ["sky", "leaf", "snow", "rose"], 3) == (["sky", "snow", "leaf", "rose"], "D")


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("mmlu_pro", {"answer": "E"}, "answer: found 'E', expected a letter from A to D, or a number, the index from 0"),
        ("mmlu_pro", {"options": ["one"]}, "options: found ['one'], expected a list of 2 to 26 options"),
        ("mmlu_pro", {"options": ["one", ""]}, "options[1]: found '', expected a non-empty text"),
        ("mmlu", {"answer": 4}, "answer: found 4, expected a number from 0 to 3, the right option's"),
        ("mmlu", {"answer": 0.5}, "answer: found 0.5, expected a number from 0 to 3, the right option's"),
        ("mmlu", {"answer": "roses"}, "answer: found 'roses', expected a letter from A to D, or a number, the index from 0"),
        ("arc", {"answerKey": "A"}, "answerKey: found 'A', expected one of 1, 2, 3"),
        (
            "arc",
            {"choices": {"text": ["a", "b"], "label": ["A"]}},
            "choices.label: found ['A'], expected a label for each of the options, in 'text'",
        ),
        ("gpqa", {"Incorrect Answer 2": None}, "Incorrect Answer 2: found null, expected a non-empty text"),
    ],
)
def test_a_bad_row_of_options_is_named(name, change, message):
    with pytest.raises(RowError) as raised:
        read(CHOICES[name] | change)
    assert str(raised.value) == message


# ---- what would be left out


@pytest.mark.parametrize(
    ("row", "key"),
    [
        ({"prompt": [USER], "reward_model": {"ground_truth": "B"}, "options": ["one", "two"]}, "options"),
        ({"question": "1+1?", "answer": "2", "distractors": ["1", "3"]}, "distractors"),
        ({"problem": "1+1?", "answer": "2", "rationale": "One and one."}, "rationale"),
        ({"problem": "1+1?", "final_answer": "2", "r1_solution_1": "One and one."}, "r1_solution_1"),
    ],
)
def test_columns_of_options_or_demonstrations_that_nothing_reads_are_refused(row, key):
    with pytest.raises(RowError, match=f"^{key}: found "):
        read(row)
    assert read({name: value for name, value in row.items() if name != key})


def test_columns_that_only_sound_like_a_demonstration_are_none():
    read({"problem": "1+1?", "answer": "2", "num_generations": 4, "is_reasoning_complete": True, "solution_type": "integer"})
    read({"problem": "1+1?", "answer": "2", "demonstration": "Add.", "rationale": "One and one."})
    read({"problem": "1+1?", "answer": "2", "options": None, "rationale": ""})


def test_the_refusal_of_unknown_columns_has_every_schema_on_one_line():
    found = schemas.refusal({"text": "1+1=2", "id": 1})
    assert found.startswith("columns: found id, text, expected ")
    assert "\n" not in found
    for name in ("prompt", "problem", "question", "choices", "answerKey", "####", "reward_model", "completion", "messages"):
        assert name in found


def test_preference_pairs_are_refused_by_name():
    row = {"prompt": [USER], "chosen": [assistant("2")], "rejected": [assistant("3")], "answer": "2"}
    assert schemas.schema_of(row) is None
    assert "chosen, prompt, rejected (preference pairs, which nothing here learns from), expected" in schemas.refusal(row)


NAMES = [*schemas.PROMPTS, *schemas.ANSWERS, *shown.COLUMNS, *shown.CHATS, *shown.VERIFIED, *choices.OPTIONS, *choices.GOLDS,
         *choices.GPQA, "A", "B", "reward_model", "system", "data_source", "category", "rationale", "a\nb"]  # fmt: skip
KEYS = st.sampled_from(["role", "content", "from", "value", "ground_truth", "text", "label", "type"])
WORDS = st.sampled_from(
    ["user", "assistant", "text", "A", "B", "", " ", '["1"]', "2\n#### 2", "\ud83d", "a\0b", "nan", "\x1e", "a\nb"]
)
NUMBERS = st.integers() | st.just(10**4000) | st.floats() | st.decimals(allow_nan=True)
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=8,
)


def refusal_of(schema: schemas.Schema, row: dict) -> str:
    """What is said of a row, "" for one that is read."""
    try:
        problem = schema.problem(row)
        demonstration = schema.demonstration(row, problem)
        schemas.refuse_left_out(row, problem, demonstration, imitated=True)
    except RowError as error:
        return str(error)
    for text in (problem.answer or "", *(message["content"] for message in problem.messages), *(demonstration or ())):
        text.encode()
    return ""


@given(st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=5))
def test_whatever_a_row_holds_is_read_or_is_one_line(row):
    assert "\n" not in schemas.refusal(row)
    for schema in schemas.SCHEMAS:
        assert "\n" not in refusal_of(schema, row)
