import json

import pytest
from transformers import AutoTokenizer

from nemo_amft.data.character_tokenizer import CHARACTERS, save_character_tokenizer, vocab_size
from nemo_amft.data.chat import ChatTemplate
from nemo_amft.data.filtering import MAX_MEASURED, drop_long_prompts, refuse_truncation
from nemo_amft.types import Example, UserError


@pytest.fixture
def tokenizer(tmp_path):
    save_character_tokenizer(tmp_path)
    return AutoTokenizer.from_pretrained(tmp_path)


def example(prompt: str = "1+1=", demonstration: str | None = "2") -> Example:
    return Example("made/1", ({"role": "user", "content": prompt},), "2", demonstration)


@pytest.mark.parametrize("model_type", [None, "qwen2", "qwen3", "llama"])
def test_every_printable_character_is_one_token_and_comes_back_whatever_model_it_lies_beside(tmp_path, model_type):
    save_character_tokenizer(tmp_path)
    if model_type is not None:
        (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    ids = tokenizer(CHARACTERS, add_special_tokens=False)["input_ids"]
    assert ids == list(range(4, vocab_size()))
    assert ChatTemplate(tokenizer).decode(ids) == CHARACTERS
    assert (len(tokenizer), tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.bos_token_id) == (vocab_size(), 0, 1, 2)


def test_the_prompt_is_the_template_s_text_up_to_the_response(tokenizer):
    chat = ChatTemplate(tokenizer)
    ids = chat.prompt_ids(({"role": "system", "content": "Add."}, {"role": "user", "content": "1+1="}))
    assert isinstance(ids, tuple)
    assert all(type(i) is int for i in ids)
    assert tokenizer.decode(ids) == "<bos>Add.\n1+1="


def test_a_demonstration_is_the_rollout_s_prompt_then_response_then_end_token(tokenizer):
    chat = ChatTemplate(tokenizer)
    sequence = chat.demonstration(example())
    prompt = chat.prompt_ids(example().messages)
    assert sequence.tokens == (*prompt, *chat.encode("2"), chat.eos_token_id)
    assert sequence.trained == (False,) * len(prompt) + (True, True)


def test_the_end_token_is_trained_on_even_where_it_is_the_pad_token(tokenizer):
    tokenizer.pad_token = tokenizer.eos_token
    sequence = ChatTemplate(tokenizer).demonstration(example())
    assert sequence.tokens[-1] == tokenizer.pad_token_id
    assert sequence.trained[-1]


def test_a_demonstration_that_is_cut_is_counted_and_does_not_learn_to_stop(tokenizer):
    chat = ChatTemplate(tokenizer, max_demonstration_tokens=3)
    fits, cut = chat.demonstration(example(demonstration="ab")), chat.demonstration(example(demonstration="abc"))
    assert (fits.num_trained, fits.tokens[-1] == chat.eos_token_id) == (3, True)
    assert (cut.num_trained, cut.tokens[-1] == chat.eos_token_id) == (3, False)
    assert (chat.num_demonstrations, chat.num_truncated) == (2, 1)


@pytest.mark.parametrize(("attribute", "what"), [("chat_template", "chat template"), ("eos_token", "end-of-sequence token")])
def test_a_tokenizer_that_cannot_serve_is_refused(tokenizer, attribute, what):
    setattr(tokenizer, attribute, None)
    with pytest.raises(UserError, match=f"found no {what}, expected one"):
        ChatTemplate(tokenizer)


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{{ raise_exception('roles must\\nalternate') }}", "roles must alternate"),
        ("{% set date = 3 %}{{ 'Today is ' + date }}", 'can only concatenate str (not "int") to str'),
        ("{{ 10 // (messages | length - 1) }}", "integer division or modulo by zero"),
    ],
)
def test_what_the_template_refuses_is_one_line(tokenizer, template, said):
    tokenizer.chat_template = template
    with pytest.raises(UserError) as raised:
        ChatTemplate(tokenizer).demonstration(example())
    assert str(raised.value) == f"made/1: the chat template refuses it: {said}"


def test_decoding_leaves_special_tokens_and_spaces_alone(tokenizer):
    chat = ChatTemplate(tokenizer)
    assert chat.decode([*chat.encode("a , b ."), chat.eos_token_id]) == "a , b .<eos>"


TURNS = (
    "{% for m in messages %}<|turn|>{{ m['role'] }}\n{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|turn|>assistant\n{% endif %}"
)


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("<think>1</think>#4<eos>", "<think>1</think>#4"),  # special tokens of the policy's own
        ("#4<|end|>\n<eos>", "#4"),  # the template's end of a turn, and the tokenizer's
        ("#4\n\n<|stop|>", "#4\n\n"),  # an end token of the model
        ("<bos>#4 <pad><pad>", "#4 "),
        ("#<pad>4<eos>", "#<pad>4"),  # is no "#4"
        ("#<unk>4", "#<unk>4"),
        ("#4<think>", "#4<think>"),
        ("<eos>", ""),
        ("", ""),
    ],
)
def test_a_response_reads_as_the_policy_wrote_it_without_the_turn_s_framing(tokenizer, written, read):
    tokenizer.add_tokens(["<think>", "</think>", "<|turn|>", "<|end|>", "<|stop|>"], special_tokens=True)
    tokenizer.chat_template = TURNS
    chat = ChatTemplate(tokenizer, end_token_ids=[tokenizer.convert_tokens_to_ids("<|stop|>")])
    assert chat.response_text(chat.encode(written)) == read
    alone = ChatTemplate(tokenizer)
    assert alone.response_text(alone.encode("4<|stop|>")) == "4<|stop|>"


def test_an_id_without_a_token_is_read_as_something(tokenizer):
    chat = ChatTemplate(tokenizer)
    hash_, four = chat.encode("#4")
    assert chat.response_text([hash_, 104, four, 1]) == "#\ufffd4"  # the tokenizer has ids up to 103


def test_prompts_that_are_too_long_are_dropped_and_counted(tokenizer, caplog):
    chat = ChatTemplate(tokenizer)
    examples = [example(prompt="1" * length) for length in (2, 3, 4)]
    assert drop_long_prompts(examples, chat, max_prompt_tokens=4, name="data.train") == examples[:2]  # <bos> counts
    assert caplog.messages == ["data.train: 1 of 3 prompts dropped, longer than 4 tokens"]
    with pytest.raises(
        UserError, match=r"^data\.max_prompt_tokens: found 1, expected at least 3, the length of the shortest prompt"
    ):
        drop_long_prompts(examples, chat, max_prompt_tokens=1, name="data.train")


def test_too_many_cut_demonstrations_are_refused_before_training(tokenizer):
    chat = ChatTemplate(tokenizer, max_demonstration_tokens=4)
    examples = [example(demonstration="abcd" if index % 10 == 0 else "abc") for index in range(100)]
    assert refuse_truncation(examples, chat, 4, max_truncated_fraction=0.1) == 0.1
    with pytest.raises(UserError, match=r"found 10 of 100 demonstrations \(10\.0%\) longer than 4 tokens, expected at most 9%"):
        refuse_truncation(examples, chat, 4, max_truncated_fraction=0.09)
    assert refuse_truncation([example(demonstration=None)], chat, 4, 0.0) == 0.0


def test_the_share_of_cut_demonstrations_is_estimated_from_a_sample_over_the_whole_set(tokenizer):
    chat = ChatTemplate(tokenizer)
    examples = [example(demonstration="abcd" if index >= 2 * MAX_MEASURED else "abc") for index in range(4 * MAX_MEASURED)]
    assert refuse_truncation(examples, chat, 4, max_truncated_fraction=0.5) == 0.5


SEEING_TEMPLATE = (
    "{% for m in messages %}{% if m['content'] is string %}{{ m['content'] }}{% else %}"
    "{% for part in m['content'] %}{{ '@' if part['type'] == 'image' else part['text'] }}{% endfor %}{% endif %}{% endfor %}"
)


def test_images_come_before_the_text_of_the_message_that_shows_them(tokenizer):
    tokenizer.chat_template = SEEING_TEMPLATE
    chat = ChatTemplate(tokenizer)
    messages = [{"role": "system", "content": "S"}, {"role": "user", "content": "look"}]
    assert chat.decode(chat.prompt_ids(messages, images=2)) == "S@@look"
    assert chat.decode(chat.prompt_ids(messages)) == "Slook"
    assert chat.decode(chat.follow_up("and now", images=1)) == "@and now"


def test_a_template_that_leaves_images_out_is_refused(tokenizer):
    tokenizer.chat_template = SEEING_TEMPLATE.replace("'@'", "''")
    with pytest.raises(UserError, match="the chat template leaves out its images"):
        ChatTemplate(tokenizer).prompt_ids([{"role": "user", "content": "look"}], images=1)
