"""Which examples a run trains on, and which it never may."""

import json

import pytest
from transformers import AutoTokenizer

from nemo_amft.algorithms.run_data import RunData, load_data
from nemo_amft.config import command_line, rules
from nemo_amft.config.load import load
from nemo_amft.data.character_tokenizer import save_character_tokenizer
from nemo_amft.data.chat import ChatTemplate
from nemo_amft.data.splits import problem_key
from nemo_amft.types import UserError

OF_THE_PROMPT = {"luffy", "srft", "hpt", "superrl", "dyme", "uft", "relift", "tapo"}
"""Methods that imitate demonstrations of the prompts they roll out (docs/methods.md)."""


@pytest.fixture(scope="module")
def chat(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    save_character_tokenizer(folder)
    return ChatTemplate(AutoTokenizer.from_pretrained(folder))


def write(path, *rows) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def problems(path, names, demonstration=None) -> str:
    shown = {} if demonstration is None else {"demonstration": demonstration}
    return write(path, *({"prompt": name, "answer": "1", **shown} for name in names))


def conversations(path, names) -> str:
    """Demonstrations without answers."""
    said = (({"role": "user", "content": name}, {"role": "assistant", "content": f"{name} is 1"}) for name in names)
    return write(path, *({"messages": list(messages)} for messages in said))


def configuration(*overrides: str):
    return load(["--config-name", "quickstart", "task=math_plain", "task.system_prompt=Go.", *overrides], check=False)


def data(chat, *overrides: str, **sources: str) -> RunData:
    config = configuration(*(f"data.{name}={value}" for name, value in sources.items()), *overrides)
    return load_data(config, config.task.build(config.data, 1), chat)


def test_own_demonstrations_take_the_place_of_the_prompts_and_need_no_answer(tmp_path, chat):
    train = problems(tmp_path / "train.jsonl", "abcdef", demonstration="no")
    found = data(chat, train=train, demonstrations=conversations(tmp_path / "own.jsonl", "uvwxyz"), validation_size="2")
    assert len(found.prompts) == 4
    assert [(e.messages[0]["content"], e.messages[1]["content"], e.demonstration) for e in found.demonstrations] == [
        ("Go.", name, f"{name} is 1") for name in "uvwxyz"
    ]
    streams = found.streams(configuration().method.build(8), seed=1)
    assert {e.messages[1]["content"] for e in streams["demonstrations"].take(6)} == set("uvwxyz")
    assert all(e.demonstration is None for e in streams["prompts"].take(4))


@pytest.mark.parametrize("given", [False, True])
def test_demonstrations_of_problems_that_are_held_out_are_dropped(tmp_path, chat, caplog, given):
    train = problems(tmp_path / "train.jsonl", "abcdef")
    more = {"validation": problems(tmp_path / "validation.jsonl", "gh")} if given else {"validation_size": "2"}
    test = problems(tmp_path / "test.jsonl", "ij")
    own = conversations(tmp_path / "own.jsonl", [f" {name.upper()}?" for name in "abcdefghijk"])  # as the texts are compared
    found = data(chat, train=train, test=test, demonstrations=own, **more)
    held = {problem_key(example) for example in (*found.validation, *found.test)}
    assert len(held) == 4
    assert {problem_key(example) for example in found.demonstrations} == set("abcdefghijk") - held
    assert "data.demonstrations: dropped 4 of 11 whose problem is held out for validation or a test (first: " in caplog.text


def test_demonstrations_of_held_out_problems_alone_are_refused(tmp_path, chat):
    train, own = problems(tmp_path / "train.jsonl", "abc"), conversations(tmp_path / "own.jsonl", "d")
    with pytest.raises(UserError, match=r"^data\.demonstrations: found 1 of 1 whose problem is held out .*, expected others$"):
        data(chat, train=train, validation=problems(tmp_path / "validation.jsonl", "d"), demonstrations=own)


def test_a_mixture_s_sources_stay_apart_in_both_streams(tmp_path, chat):
    a, b = problems(tmp_path / "a.jsonl", "abcdefgh"), problems(tmp_path / "b.jsonl", "ijkl")
    c, d = conversations(tmp_path / "c.jsonl", "mno"), conversations(tmp_path / "d.jsonl", "pq")
    found = data(
        chat,
        train=f"[{{path:{a},weight:3}},{{path:{b}}}]",
        demonstrations=f"[{{path:{c}}},{{path:{d},weight:4}}]",
        validation_size="3",
    )
    assert (found.prompt_sources, found.demonstration_sources) == (("a", "b"), ("c", "d"))
    streams = found.streams(configuration().method.build(8), seed=1)
    assert "".join(sorted(e.source for e in streams["prompts"].take(8))) == "aaaaaabb"
    assert "".join(sorted(e.source for e in streams["demonstrations"].take(10))) == "ccdddddddd"
    assert "".join(sorted(e.source for e in found.some_demonstrations(5))) == "cdddd"


def test_methods_that_imitate_their_prompts_draw_them_from_the_demonstrated_ones_of_every_source(tmp_path, chat):
    a, b = problems(tmp_path / "a.jsonl", "abcd", demonstration="1"), problems(tmp_path / "b.jsonl", "efgh")
    found = data(chat, train=f"[{{path:{a}}},{{path:{b}}}]", validation_size="1")
    for name, sources in (("luffy", {"a"}), ("grpo", {"a", "b"})):
        stream = found.streams(configuration(f"method={name}").method.build(8), seed=1)["prompts"]
        assert {example.source for example in stream.take(9)} == sources


@pytest.mark.parametrize("name", command_line.choices([command_line.CONF], "method"))
def test_each_method_takes_demonstrations_of_their_own_or_says_why_not(tmp_path, name):
    own, train = conversations(tmp_path / "own.jsonl", "ab"), problems(tmp_path / "train.jsonl", "cd")
    config = configuration(f"method={name}", f"data.train={train}", f"data.demonstrations={own}")
    said = [line.partition(", which ")[2] for line in rules.violations(config, on_this_machine=False)]
    why = "imitates demonstrations of the prompts it rolls out, expected null: those are in the rows of data.train"
    assert said == ([why] if name in OF_THE_PROMPT else [])


def test_demonstrations_that_nothing_imitates_are_refused(tmp_path):
    own, train = conversations(tmp_path / "own.jsonl", "ab"), problems(tmp_path / "train.jsonl", "cd")
    config = configuration("method=grpo", "warmup.steps=0", f"data.train={train}", f"data.demonstrations={own}")
    assert list(rules.violations(config, on_this_machine=False)) == [
        "data.demonstrations: found with PolicyGradient and warmup.steps=0, expected null, as nothing is imitated"
    ]
