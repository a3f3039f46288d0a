"""A right response has to be right when it comes back from the tokenizer: found before a model is built."""

import logging

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from nemo_amft.algorithms.round_trip import boxed, check_round_trip
from nemo_amft.algorithms.run_data import RunData
from nemo_amft.data.character_tokenizer import CHARACTERS, save_character_tokenizer
from nemo_amft.data.chat import ChatTemplate
from nemo_amft.tasks.arithmetic.verifier import verify
from nemo_amft.tasks.rewards import RewardPool
from nemo_amft.types import Example, UserError
from tests.unit.reward_verifiers import both_turns, grade_thoughts

TEMPLATE = "{% for m in messages %}{{ m['content'] }}{% endfor %}"


def chat_of(normaliser=None, characters=CHARACTERS, special=()) -> ChatTemplate:
    """One token a character; `special` tokens beside them."""
    core = Tokenizer(models.WordLevel({c: i for i, c in enumerate(dict.fromkeys(["<unk>", "<eos>", *characters]))}, "<unk>"))
    core.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    core.decoder = decoders.Fuse()
    if normaliser is not None:
        core.normalizer = normaliser
    core.add_special_tokens(["<unk>", "<eos>", *special])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>", eos_token="<eos>")
    tokenizer.chat_template = TEMPLATE
    return ChatTemplate(tokenizer)


def example(answer: str, demonstration: str | tuple[str, ...] | None, name: str = "made/1") -> Example:
    return Example(name, ({"role": "user", "content": "2+2="},), answer, demonstration)


def data_of(*examples: Example) -> RunData:
    return RunData(list(examples), [e for e in examples if e.demonstration is not None], [], [])


@pytest.fixture
def check():
    """`check_round_trip` with a pool of one process for the judge."""
    pools = []

    def checked(judge, data: RunData, chat: ChatTemplate, several_turns: bool = False, thinking: bool | None = None):
        pools.append(RewardPool(judge, 1, 5.0, 500))
        check_round_trip(data, chat, pools[-1], several_turns, thinking)

    yield checked
    for pool in pools:
        pool.close()


def test_what_comes_back_right_passes_without_a_word(check, caplog, tmp_path):
    save_character_tokenizer(tmp_path)
    chat = ChatTemplate(AutoTokenizer.from_pretrained(tmp_path))
    check(verify, data_of(example("4", "2+2=4#4"), example("", "imitated only")), chat)
    check(grade_thoughts, data_of(example("4", "<think>2</think>4")), chat_of(special=["<think>", "</think>"]))
    assert caplog.messages == []


def test_a_reward_that_the_tokenizer_loses_is_one_line(check):
    broken = chat_of(normalizers.Replace("#", ""))
    with pytest.raises(UserError) as raised:
        check(verify, data_of(example("4", "2+2=4#4")), broken)
    assert str(raised.value) == (
        "made/1: demonstration: earns 1, and 0 once the tokenizer has encoded and decoded it: "
        "'2+2=4#4' comes back as '2+2=44'; expected a tokenizer that keeps what graders read (model.tokenizer)"
    )


def test_every_turn_counts(check):
    turns = data_of(example("#3", ("#1", "no", "#3")))
    check(both_turns, turns, chat_of(), several_turns=True)
    with pytest.raises(UserError, match="'#1' comes back as '1'"):
        check(both_turns, turns, chat_of(normalizers.Replace("#", "")), several_turns=True)


def test_without_demonstrations_a_boxed_answer_is_sent(check):
    problems = data_of(example("4", None))
    assert boxed(problems.prompts[0], chat_of(), thinking=True) == "<think>\n</think>\n\\boxed{4}"
    check(grade_thoughts, problems, chat_of(), thinking=True)
    with pytest.raises(
        UserError, match=r"^made/1: boxed answer: earns 1, and 0 once .*'\\\\boxed\{4\}' comes back as 'boxed\{4\}'"
    ):
        check(grade_thoughts, problems, chat_of(normalizers.Replace("\\", "")))


def test_demonstrations_that_earn_nothing_anyway_are_counted(check, caplog):
    with caplog.at_level(logging.WARNING):
        check(grade_thoughts, data_of(example("4", "4"), example("5", "4", "made/2")), chat_of())
    assert caplog.messages == ["1 of 2 demonstrations looked at do not count as correct (first: made/2, wrong)"]
