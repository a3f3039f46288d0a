"""What a chat template is told beside the messages."""

from datetime import datetime

import pytest
from transformers import AutoTokenizer

from nemo_amft.config.load import load
from nemo_amft.config.rules import violations
from nemo_amft.config.schema import ModelConfig, ScratchConfig
from nemo_amft.data.character_tokenizer import save_character_tokenizer
from nemo_amft.data.chat import ChatTemplate
from nemo_amft.data.template import TIME_FILE, pinned_time, with_defaults
from nemo_amft.models.hub_model import prepare_hub_model
from nemo_amft.types import UserError

MESSAGES = ({"role": "user", "content": "1+1="},)
HYBRID = "{{ messages[0]['content'] }}{% if enable_thinking is defined and not enable_thinking %}<think></think>{% endif %}"
CLOCK = "{% for m in messages %}{{ m['content'] }} {% endfor %}at {{ strftime_now('%Y-%m-%d %H:%M:%S') }}"


@pytest.fixture
def tokenizer(tmp_path):
    save_character_tokenizer(tmp_path / "tokenizer")
    return AutoTokenizer.from_pretrained(tmp_path / "tokenizer")


def written(tokenizer, **given) -> str:
    return tokenizer.apply_chat_template(list(MESSAGES), tokenize=False, add_generation_prompt=True, **given)


def test_variables_are_the_template_s_defaults_which_a_caller_may_change(tokenizer):
    tokenizer.chat_template = with_defaults(HYBRID, {"enable_thinking": False})
    assert written(tokenizer) == "1+1=<think></think>"
    assert written(tokenizer, enable_thinking=True) == "1+1="


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ('a"b\\n\n\u00e9\U0001f600', 'a"b\\n\n\u00e9\U0001f600'),
        (1e-06, "1e-06"),
        (None, "None"),
        ([1, {"k": True}], "[1, {'k': True}]"),
    ],
)
def test_a_variable_has_the_value_that_was_given(tokenizer, value, text):
    tokenizer.chat_template = with_defaults("\n{{ x }}", {"x": value})
    assert written(tokenizer) == f"\n{text}"


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"enable_thinkng": False}, "enable_thinkng: the chat template reads no such variable; did you mean enable_thinking?"),
        (
            {"messages": []},
            "messages: found a variable that every template is given anyway, expected one of this template's own",
        ),
        ({"eos_token": "x"}, "eos_token: found a variable that every template is given anyway"),
        ({"enable_thinking": float("nan")}, "enable_thinking: found nan, expected a text, number, boolean, null"),
    ],
)
def test_what_would_have_no_effect_is_refused(variables, said):
    with pytest.raises(UserError) as raised:
        with_defaults(HYBRID, variables, taken={"eos_token"})
    assert str(raised.value).startswith(f"model.chat_template_kwargs.{said}")


def test_the_loaded_model_s_tokenizer_has_the_variables_and_so_has_its_export(tmp_path):
    scratch = ScratchConfig(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2)
    (tmp_path / "hybrid.jinja").write_text(HYBRID)
    model = ModelConfig(
        scratch=scratch, chat_template=str(tmp_path / "hybrid.jinja"), chat_template_kwargs={"enable_thinking": False}
    )
    prepare_hub_model(model, tmp_path / "base").tokenizer.save_pretrained(tmp_path / "exported")
    assert written(AutoTokenizer.from_pretrained(tmp_path / "exported")) == "1+1=<think></think>"


def test_prompts_tell_the_time_at_which_the_run_was_begun(tokenizer, tmp_path):
    tokenizer.chat_template = CLOCK
    first = pinned_time(tmp_path, CLOCK, None)
    (tmp_path / TIME_FILE).write_text("2001-02-03T04:05:06\n")  # as if that had been on another day
    then = pinned_time(tmp_path, CLOCK, None)
    assert abs((datetime.now() - first).total_seconds()) < 60
    chat = ChatTemplate(tokenizer, now=then)
    assert chat.decode(chat.prompt_ids(MESSAGES)) == "1+1= at 2001-02-03 04:05:06"
    assert chat.decode(chat.follow_up("again")) == " again at 2001-02-03 04:05:06"


def test_the_time_can_be_given_for_a_run_but_not_changed(tmp_path):
    assert pinned_time(tmp_path, CLOCK, "2026-01-31") == pinned_time(tmp_path, CLOCK, None) == datetime(2026, 1, 31)
    with pytest.raises(
        UserError, match=r"^model\.chat_template_time: found 2026-02-01, expected 2026-01-31T00:00:00, with which"
    ):
        pinned_time(tmp_path, CLOCK, "2026-02-01")


def test_a_time_that_nothing_reads_is_refused_and_none_is_kept(tmp_path):
    assert pinned_time(tmp_path, HYBRID, None) is None
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(UserError, match=r"found 2026-01-31, expected null, as the chat template reads no clock$"):
        pinned_time(tmp_path, HYBRID, "2026-01-31")


def test_what_is_no_time_is_refused_before_a_model_is_looked_for():
    config = load(["--config-name", "quickstart", "model.chat_template_time=tomorrow"], check=False)
    (line,) = violations(config, on_this_machine=False)
    assert line.startswith("model.chat_template_time: found 'tomorrow', expected a date or a time, such as 2026-01-31")
