"""Sources with weights, from the configuration to the examples."""

import json

import pytest

from nemo_amft.config import rules
from nemo_amft.config.load import load
from nemo_amft.config.schema import SourceConfig
from nemo_amft.data import mixture
from nemo_amft.types import Example, UserError


@pytest.fixture
def files(tmp_path):
    """Two files of two problems."""
    for name in ("sums", "words"):
        rows = [{"prompt": f"{name} {i}?", "answer": "1"} for i in range(2)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def configuration(*overrides: str):
    return load(["--config-name", "quickstart", "task=math_plain", *overrides], check=False)


def refusals(*overrides: str) -> list[str]:
    return list(rules.violations(configuration(*overrides), on_this_machine=False))


def test_a_mixture_is_a_list_of_sources_with_weights_on_the_command_line(files):
    sources = configuration(f"data.train=[{{path:{files}/sums.jsonl,weight:2}},{{path:{files}/words.jsonl,name:w}}]").data.train
    assert sources == (SourceConfig(f"{files}/sums.jsonl", 2.0), SourceConfig(f"{files}/words.jsonl", 1.0, "w"))
    assert mixture.weights_of(sources) == {"sums": 2.0, "w": 1.0}
    assert [example.source for example in mixture.load_mixture(sources, "train")] == ["sums", "sums", "w", "w"]


def test_sources_without_weights_are_one_set(files):
    for text in (f"{files}/sums.jsonl", f"[{files}/sums.jsonl,{files}/words.jsonl]"):
        sources = configuration(f"data.train={text}").data.train
        assert mixture.weights_of(sources) == {}
        assert mixture.load_mixture(sources, "train")[0].source == "sums"
    assert len(mixture.load_mixture(sources, "train")) == 4


@pytest.mark.parametrize(
    ("sources", "said"),
    [
        ("[{path:F/sums.jsonl,weight:0}]", "data.train[0].weight: found 0, expected more than 0"),
        (
            "[{path:F/sums.jsonl},{path:F/sums.jsonl}]",
            "data.train[1].name: found 'sums' again, expected a name of its own",
        ),
        (
            "[{path:F/sums.jsonl,name:mean}]",
            "data.train[0].name: found 'mean', expected another one, which no other",
        ),
    ],
)
def test_sources_that_could_not_be_told_apart_are_refused(files, sources, said):
    (line,) = refusals(f"data.train={sources.replace('F/', f'{files}/')}")
    assert line.startswith(said)


@pytest.mark.parametrize(
    ("sources", "said"),
    [
        ("[{path:a,wieght:1}]", r"data\.train\[0\]\.wieght: unknown key; did you mean data\.train\[0\]\.weight\?"),
        ("[{path:a},{weight:1}]", r"data\.train\[1\]\.path: missing; expected str or \[str, \.\.\.\]"),
        ("[{path:a,weight:heavy}]", r"data\.train\[0\]\.weight: expected float, found 'heavy'"),
    ],
)
def test_what_is_no_source_is_refused_where_it_stands(sources, said):
    with pytest.raises(UserError, match=f"^{said}$"):
        configuration(f"data.train={sources}")


def test_a_source_of_which_nothing_is_left_is_refused_by_name():
    some = [Example("0", (), "", source="a")]
    mixture.refuse_empty("data.train", {"a": 1.0}, some)
    with pytest.raises(
        UserError, match=r"^data\.train: found no example left of b, expected at least one, as it has weight 3$"
    ):
        mixture.refuse_empty("data.train", {"a": 1.0, "b": 3.0}, some)


def test_the_first_problems_of_d_val_are_of_all_sources():
    found = mixture.spread([Example(str(i), (), "", source="ab"[i >= 8]) for i in range(12)])
    assert "".join(example.source for example in found) == "abaabaabaaba"
    assert [example.id for example in found if example.source == "b"] == ["8", "9", "10", "11"]
