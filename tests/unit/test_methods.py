"""What each method makes of prompts that no response, some or all responses solve; its data, its schedules and its state."""

from __future__ import annotations

import functools
import math
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from nemo_amft.algorithms.controllers.fixed import Fixed
from nemo_amft.algorithms.methods.base import Group, Method, Sample, sft_term
from nemo_amft.algorithms.methods.uft import chunks
from nemo_amft.config import command_line, rules
from nemo_amft.config.load import load
from nemo_amft.data.batching import Cut, micro_batches
from nemo_amft.types import TokenSequence, Totals, Verdict
from tests.unit.toy_policy import Tools, as_json, example, group, log_probs, method_and_controller, theta, three_groups

NAMES = command_line.choices([command_line.CONF], "method")
GROUPS = three_groups()
EXAMPLES = [g.example for g in GROUPS]
DEMONSTRATIONS = [Tools().demonstration(e) for e in EXAMPLES]


def advantages(term) -> list[float]:
    return [round(a, 4) for a in term.batch.per_sequence["advantage"]]


def tokens(terms) -> dict[str, int]:
    return {term.name: term.batch.total_tokens for term in terms}


# ---- configuration


@functools.cache
def without_a_word(config_name: str):
    return load(["--config-name", config_name], check=False)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("config_name", ["quickstart", "amft_math"])
def test_one_word_changes_the_method(config_name, name):
    config = load(["--config-name", config_name, f"method={name}"], check=False)
    assert list(rules.violations(config, on_this_machine=False)) == []
    assert isinstance(config.method.build(8), Method)
    same = without_a_word(config_name)
    assert (config.data, config.model, config.rollout) == (same.data, same.model, same.rollout)
    if name in ("chord", "amft", "amft_grpo", "amft_no_meta", "amft_no_entropy", "amft_no_warmup"):
        assert config.controller.cls is not Fixed
    else:
        assert config.controller.cls is Fixed


def test_the_issues_list_is_complete():
    wanted = (
        "sft sft_kl grpo dr_grpo rloo ppo sft_then_rl luffy relift tapo srft superrl sasr dyme chord chord_phi uft hpt amft "
        "amft_no_meta amft_no_entropy amft_no_warmup"
    )
    assert set(wanted.split()) <= set(NAMES)


def test_the_documentation_has_every_method():
    text = (Path(__file__).parents[2] / "docs" / "methods.md").read_text()
    assert [name for name in NAMES if f"`{name}`" not in text] == []


@pytest.mark.parametrize("name", ["luffy", "relift", "tapo", "srft", "superrl", "sasr", "dyme", "uft", "hpt"])
def test_a_critic_is_refused_where_a_group_is_compared(name):
    config = load(["--config-name", "quickstart", f"method={name}", "method.rl.advantage=gae"], check=False)
    assert list(rules.violations(config, on_this_machine=False)) == [
        "method.rl.advantage: found gae, expected grpo, dr_grpo or rloo: this method compares a group"
    ]


@pytest.mark.parametrize(
    ("name", "key", "message"),
    [
        ("srft", "method.rl.kl_coef=0.1", "method.rl.kl_coef: found 0.1, expected 0: SRFT's losses have no such part"),
        ("tapo", "method.instruction=think", "method.instruction: found 'think', expected a text with {pattern} in it"),
        ("relift", "method.every=0", "method.every: found 0, expected at least 1"),
        ("uft", "method.hint_start=1.5", "method.hint_start: found 1.5, expected a number from 0 to 1"),
        ("chord", "controller.peak=2", "controller.peak: found 2.0, expected a number from 0 to 1"),
        ("luffy", "method.shaping=0", "method.shaping: found 0.0, expected more than 0"),
    ],
)
def test_what_cannot_work_is_one_line(name, key, message):
    config = load(["--config-name", "quickstart", f"method={name}", key], check=False)
    assert list(rules.violations(config, on_this_machine=False)) == [message]


@pytest.mark.parametrize("name", [name for name in NAMES if name != "chord_phi"])  # which sets a constant mu
def test_mu_is_learned_only_where_it_weighs_both_losses_in_every_step(name):
    config = load(["--config-name", "quickstart", f"method={name}", "controller=responsive"], check=False)
    found = [line for line in rules.violations(config, on_this_machine=False) if line.startswith("controller: ")]
    weighs = name.startswith(("amft", "chord"))
    assert found == [] if weighs else found[0].startswith("controller: found AMFTController, expected controller=fixed: ")
    method, _ = method_and_controller(name)
    if weighs:
        assert {term.name: term.weight for term in method.compose(0, GROUPS, DEMONSTRATIONS)} == {"sft": 1.0, "rl": 1.0}


def test_sft_has_its_own_rate():
    config = load(["--config-name", "quickstart", "method=sft"], check=False)
    assert config.optim.lr == config.warmup.lr == 1e-3
    assert load(["--config-name", "quickstart", "method=sft", "optim.lr=2e-5"], check=False).optim.lr == 2e-5
    assert load(["--config-name", "amft_math", "method=sft"], check=False).optim.lr == 5e-5


# ---- rules


@pytest.mark.parametrize("name", ["grpo", "dr_grpo", "rloo"])
def test_equal_rewards_teach_rl_nothing(name):
    method, _ = method_and_controller(name)
    (term,) = method.compose(0, GROUPS, [])
    assert advantages(term)[:4] == advantages(term)[8:] == [0.0] * 4
    up, down, *_ = advantages(term)[4:8]
    assert up > 0 > down
    assert method.demonstrations_per_step(32) == 0


def test_sft_rolls_nothing_out():
    method, _ = method_and_controller("sft")
    assert method.prompts(0, EXAMPLES) == []
    (term,) = method.compose(0, [], DEMONSTRATIONS)
    assert term.needs == frozenset()
    anchored, _ = method_and_controller("sft_kl")
    assert anchored.uses_reference
    assert anchored.compose(0, [], DEMONSTRATIONS)[0].needs == {"reference_log_prob"}


def test_the_loss_of_a_source_is_the_same_however_its_demonstrations_are_dealt_out():
    shown = [replace(d, example=replace(d.example, source="ab"[i % 2])) for i, d in enumerate(DEMONSTRATIONS)]
    term = sft_term(shown).by_source(("a", "b"))
    log_p = torch.log_softmax(theta(), -1)
    for parts, size in ((1, 1), (1, 8), (2, 2), (3, 1)):  # updates of a step, and sequences of a micro-batch
        found: Counter[str] = Counter()
        for part in term.split(parts):
            for micro in micro_batches(part.batch, Cut(size=size), torch.device("cpu")):
                log_prob = torch.where(micro.mask, log_p[micro.labels], 0.0)
                _, metrics = part.loss(log_prob, log_prob, micro.mask, micro.extras, Totals(1, 1))
                for source in "ab":
                    total, count = metrics[f"loss/sft/{source}"]
                    found.update({source: total.item(), f"{source} tokens": count.item()})
        for i, source in enumerate("ab"):
            rows = [d.sequence for d in DEMONSTRATIONS[i::2]]
            assert found[source] == pytest.approx(-sum(sum(log_probs(row, theta())) for row in rows).item())
            assert found[f"{source} tokens"] == sum(row.num_trained for row in rows)


def test_luffys_demonstration_fades_as_the_prompt_is_solved():
    method, _ = method_and_controller("luffy")
    assert method.samples_per_prompt(8) == 7
    (term,) = method.compose(0, GROUPS, [])
    none, some, every = (advantages(term)[5 * i : 5 * i + 5] for i in range(3))
    assert none == [-0.2] * 4 + [0.8]
    assert some == [0.4, -0.6, -0.6, 0.4, 0.4]
    assert every == [0.0] * 5
    assert term.batch.per_sequence["off_policy"] == [0.0, 0.0, 0.0, 0.0, 1.0] * 3


def test_luffy_without_a_demonstration_is_its_group_alone():
    method, _ = method_and_controller("luffy")
    (term,) = method.compose(0, [group(example("x", demonstration=None), [1.0, 0.0])], [])
    assert advantages(term) == [0.5, -0.5]


def test_a_wrong_demonstration_is_no_better_than_a_wrong_response():
    method, _ = method_and_controller("luffy")
    (term,) = method.compose(0, [group(example("x", demonstration="#8"), [0.0, 0.0])], [])
    assert advantages(term) == [0.0] * 3


def test_relift_imitates_the_newest_unsolved_prompts_when_its_buffer_is_full():
    method, _ = method_and_controller("relift", "method.buffer_size=2")
    assert [t.own_update for t in method.compose(0, GROUPS, [])] == [False]
    assert [e.id for e in method.buffer] == ["none"]
    unsolved = [group(example(name, f"{name}#7"), [0.0, 0.0]) for name in ("a", "b")]
    kept = as_json(method.state_dict())
    _, own = method.compose(1, unsolved, [])
    assert own.batch.sequences == [Tools().demonstration(g.example).sequence for g in unsolved[::-1]]
    assert (method.buffer, method.metrics()) == ([], {"method/buffer": 0.0, "method/imitated": 2.0})

    other, _ = method_and_controller("relift", "method.buffer_size=2")
    other.load_state_dict(kept)
    assert other.buffer == [EXAMPLES[0]]


def test_relift_by_period_is_amfts_description():
    method, _ = method_and_controller("relift", "method.every=3")
    due = [len(method.compose(step, GROUPS, [])) == 2 for step in range(6)]
    assert due == [False, False, True] * 2
    assert len(method.compose(8, GROUPS[2:], [])) == 1  # nothing was unsolved


def test_srft_has_four_parts():
    method, _ = method_and_controller("srft")
    sft, demonstration, own = method.compose(0, GROUPS, [])
    assert [t.name for t in (sft, demonstration, own)] == ["sft", "demonstration", "rl"]
    names = [*sft.loss.metrics, *demonstration.loss.metrics, *own.loss.metrics]
    assert len(set(names)) == len(names), "metrics collide"
    assert own.batch.per_sequence["correct"] == [0.0] * 4 + [1.0, 0.0, 0.0, 1.0] + [1.0] * 4
    none, some, every = demonstration.batch.per_sequence["advantage"]
    assert none == pytest.approx(0.8 / math.sqrt((4 * 0.2**2 + 0.8**2) / 4), abs=1e-4)
    assert none > some > 0 == every
    assert (sft.on_policy, demonstration.on_policy, own.on_policy) == (False, False, True)
    bounded, _ = method_and_controller("srft", "method.own_form=ratio", "method.rl.updates_per_rollout_batch=2")
    assert bounded.compose(0, GROUPS, [])[2].needs == {"old_log_prob"}


def test_hpt_gives_up_the_rollouts_of_prompts_at_the_gate():
    method, _ = method_and_controller("hpt")
    sft, rl = method.compose(0, GROUPS, [])
    assert sft.batch.sequences == [DEMONSTRATIONS[0].sequence]
    assert rl.batch.sequences == [s.sequence for g in GROUPS[1:] for s in g.samples]
    assert method.metrics()["method/imitated_prompts"] == pytest.approx(1 / 3)
    wider, _ = method_and_controller("hpt", "method.gate=2")
    assert [len(t.batch.sequences) for t in wider.compose(0, GROUPS, [])] == [2, 4]


def test_hpt_with_nothing_to_explore_or_nothing_to_imitate():
    method, _ = method_and_controller("hpt")
    sft, rl = method.compose(0, GROUPS[:1], [])
    assert tokens([sft, rl]) == {"sft": DEMONSTRATIONS[0].sequence.num_trained, "rl": 0}
    assert len(rl.split(2)) == len(sft.split(2)) == 2
    sft, rl = method.compose(0, GROUPS[2:], [])
    assert tokens([sft])["sft"] == 0
    bare = group(example("x", demonstration=None), [0.0, 0.0])
    sft, rl = method.compose(0, [bare], [])
    assert len(rl.batch.sequences) == 2  # unsolved, but there is nothing to imitate


def test_hpt_decides_for_each_group_also_where_a_problem_occurs_twice():
    method, _ = method_and_controller("hpt")
    twice = example("x")
    sft, rl = method.compose(0, [group(twice, [0.0, 0.0]), group(twice, [1.0, 0.0])], [])
    assert (len(sft.batch.sequences), len(rl.batch.sequences)) == (1, 2)


def test_superrl_looks_at_rewards_and_hpt_at_correctness():
    partly = group(example("x"), [0.5, 0.0], correct=[False, False])
    for name, imitated in (("superrl", 0), ("hpt", 1)):
        method, _ = method_and_controller(name)
        assert len(method.compose(0, [partly], [])[0].batch.sequences) == imitated


def test_dyme_memorises_explores_or_leaves_alone():
    method, _ = method_and_controller("dyme")
    (term,) = method.compose(0, GROUPS, [])
    none, some, every = (advantages(term)[4 * i : 4 * i + 4] for i in range(3))
    assert none == [1.0, 0.0, 0.0, 0.0]
    assert term.batch.sequences[0] == DEMONSTRATIONS[0].sequence
    assert term.batch.sequences[1:] == [s.sequence for g in GROUPS for s in g.samples][1:]
    assert term.batch.per_sequence["off_policy"] == [1.0] + [0.0] * 11
    assert some == pytest.approx([0.866, -0.866, -0.866, 0.866], abs=1e-3)
    assert every == [0.0] * 4
    (bare,) = method.compose(0, [group(example("x", demonstration=None), [0.0, 0.0])], [])
    assert advantages(bare) == [0.0, 0.0]


def test_sasr_imitates_while_the_sft_gradient_is_large():
    method, _ = method_and_controller("sasr")
    assert method.probability == 1.0
    method.observe("warmup", 0, {"grad_norm/total": 2.0})
    assert method.probability == 0.5
    method.prompts(0, EXAMPLES)
    imitated = [not method.prompts(step, EXAMPLES) for step in range(400)]
    assert sum(imitated) / 400 == pytest.approx(0.5, abs=0.1)
    again, _ = method_and_controller("sasr")
    again.load_state_dict(as_json(method.state_dict()))
    assert [not again.prompts(step, EXAMPLES) for step in range(400)] == imitated
    step = imitated.index(True)
    method.prompts(step, EXAMPLES)
    method.observe("train", step, {"grad_norm/total": 0.5})
    assert method.probability == pytest.approx(0.5 / 2.5)
    method.prompts(imitated.index(False), EXAMPLES)
    method.observe("train", 1, {"grad_norm/total": 99.0})  # of a GRPO step, whichever it was under the new p
    method.observe("train", 2, {"grad_norm/total": math.nan})
    assert math.isfinite(method.probability)


def test_sasr_hears_only_of_its_own_sft_steps():
    method, _ = method_and_controller("sasr")
    method.load_state_dict({"warmup_norm": 1.0, "last_norm": 1e-12})
    assert method.prompts(0, EXAMPLES)
    method.observe("train", 0, {"grad_norm/total": 99.0})
    assert method.last_norm == 1e-12


def test_chord_has_both_streams_in_every_step():
    method, _ = method_and_controller("chord")
    sft, rl = method.compose(0, GROUPS[:1], DEMONSTRATIONS)
    assert tokens([sft, rl]) == {"sft": sum(d.sequence.num_trained for d in DEMONSTRATIONS), "rl": 11}
    assert method.demonstrations_per_step(32) == 32


# ---- what is rolled out


def test_ufts_hints_shorten_along_a_cosine():
    method, _ = method_and_controller("uft", "method.hint_steps=100")
    assert method.probability(49) == pytest.approx(0.5)
    assert method.probability(99) == pytest.approx(0.05)
    assert method.probability(100) == 0.0
    assert method.probability(24) == pytest.approx(0.05 + 0.9 * (1 + math.cos(math.pi / 4)) / 2)
    share = []
    for step in (0, 49, 99, 100):
        hinted = method.prompts(step, [example(f"p{i}") for i in range(200)])
        share.append(sum(len(e.response_prefix) for e in hinted) / (200 * len("3+4=7#7")))
    assert share == pytest.approx([0.95, 0.5, 0.05, 0.0], abs=0.06)
    assert method.prompts(49, EXAMPLES) == method.prompts(49, EXAMPLES)  # a draw belongs to (seed, step)


def test_ufts_hint_is_trained_on_and_nothing_else_of_the_prompt():
    method, _ = method_and_controller("uft")
    hinted = replace(EXAMPLES[0], response_prefix="3+4")
    sft, rl = method.compose(0, [group(hinted, [1.0, 0.0]), group(EXAMPLES[1], [0.0, 1.0])], [])
    prompt = len(Tools().prompt(EXAMPLES[0]))
    (row,) = sft.batch.sequences
    assert row.tokens[prompt:] == tuple(Tools().encode("3+4"))
    assert row.trained == (False,) * prompt + (True,) * 3
    assert sft.weight == 0.001
    assert tokens([rl]) == {"rl": 2 * (2 + 3)}


def test_ufts_hint_stands_before_the_first_of_several_turns():
    method, _ = method_and_controller("uft")
    hinted = replace(EXAMPLES[0], response_prefix="3+4")
    before = [*Tools().prompt(hinted), *Tools().encode("3+4")]
    turns = ((before, False), ([5, 2], True), ([6, 7, 8], False), ([9, 2], True))  # a response, the user again, a response
    tokens, trained = zip(*((token, own) for part, own in turns for token in part), strict=True)
    episode = Sample(TokenSequence(tokens, trained), "", Verdict(0.0, False), True, num_tokens=4, num_turns=2)
    sft, _ = method.compose(0, [Group(hinted, (episode, episode))], [])
    (row,) = sft.batch.sequences
    assert row.tokens == tuple(before)
    assert row.trained == (False,) * (len(before) - 3) + (True,) * 3


def test_ufts_hints_are_cut_where_the_prompt_has_no_room():
    method, _ = method_and_controller("uft", "method.hint_start=1.0", "method.hint_steps=100000")
    method.bind(Tools(max_prompt_tokens=len(Tools().prompt(EXAMPLES[0])) + 4))
    (hinted,) = method.prompts(0, EXAMPLES[:1])
    assert EXAMPLES[0].demonstration.startswith(hinted.response_prefix)
    assert 0 < len(hinted.response_prefix) <= 4
    assert method.metrics() == {"method/hinted": 1.0, "method/hints_cut": 1.0}
    method.bind(Tools(max_prompt_tokens=0))
    assert method.prompts(0, EXAMPLES[:1]) == EXAMPLES[:1]
    assert method.metrics() == {"method/hinted": 0.0, "method/hints_cut": 1.0}


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("a\nb\nc\nd\ne\n", ["a\n", "b\n", "c\n", "d\n", "e\n"]),
        ("One. Two! Three? Four. Five. Six.", ["One. ", "Two! ", "Three? Four. ", "Five. ", "Six."]),
        ("one two three four five", ["one ", "two ", "three ", "four ", "five"]),
        ("3+4=7#7", ["3", "+4", "=", "7#", "7"]),
        ("ab", ["a", "b"]),
        ("", []),
    ],
)
def test_a_demonstration_is_cut_into_chunks_that_give_it_back(text, parts):
    assert chunks(text, 5) == parts
    assert "".join(parts) == text


def test_tapo_puts_outlines_of_demonstrations_before_prompts():
    method, _ = method_and_controller("tapo", "method.patterns=2", "method.instruction='{pattern}'")
    examples = [example(f"p{i}", text) for i, text in enumerate(["1+2=3#3", "4+5=9#9", "7-1=6#6", "2*3=6;6*1=6#6"])]
    guided = [e for step in range(100) for e in method.prompts(step, examples)]
    assert method.library == ["#+#=###", "#-#=###"]  # without numbers the first two are one outline
    texts = [e.messages[-1]["content"] for e in guided]
    plain = {e.messages[-1]["content"] for e in examples}
    assert {t.split("\n")[0] for t in texts if t not in plain} == set(method.library)
    assert sum(t not in plain for t in texts) / len(texts) == pytest.approx(0.5, abs=0.1)
    again, _ = method_and_controller("tapo", "method.patterns=2", "method.instruction='{pattern}'")
    again.load_state_dict(as_json(method.state_dict()))
    assert again.prompts(99, examples) == method.prompts(99, examples)


def test_tapo_leaves_a_pattern_out_that_makes_a_prompt_too_long():
    method, _ = method_and_controller("tapo", "method.guided=1.0")
    method.bind(Tools(max_prompt_tokens=8))
    assert method.prompts(0, EXAMPLES) == EXAMPLES
    assert method.metrics() == {"method/guided": 0.0, "method/too_long": 3.0}
    assert method.prompts(0, [example("x", demonstration=None)]) == [example("x", demonstration=None)]


RL_ALONE = {"grpo", "dr_grpo", "rloo", "ppo", "sft_then_rl"}


@pytest.mark.parametrize("name", NAMES)
def test_all_but_rl_alone_needs_demonstrations(name):
    config = load(["--config-name", "quickstart", f"method={name}"], check=False)
    assert config.method.build(8).imitates(config.data) is (name not in RL_ALONE)
