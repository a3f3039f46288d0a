"""Which hands can be solved, what the splits hold, and that what is demonstrated is right."""

from __future__ import annotations

import itertools
import json
import random
import re
from collections import Counter
from fractions import Fraction
from pathlib import Path

import pytest
import yaml

from nemo_amft.config.plugins import load_plugin
from nemo_amft.config.schema import DataConfig
from nemo_amft.data.character_tokenizer import CHARACTERS
from nemo_amft.tasks.general_points import GeneralPointsConfig, GeneralPointsTask
from nemo_amft.tasks.general_points.cards import numbers
from nemo_amft.tasks.general_points.solver import draw_probability, solvable, solve
from nemo_amft.types import UserError

SPLITS = ("train", "validation", "test")
EASY = {"style": "compact", "max_rank": 9, "target": 12}


def make_task(seed: int = 1, **keys) -> GeneralPointsTask:
    sizes = {"num_train": 400, "num_validation": 60, "num_test": 60}
    return GeneralPointsTask(GeneralPointsConfig(**{**sizes, **keys}), DataConfig(), seed)


def hand_of(example) -> tuple[int, ...]:
    return tuple(sorted(json.loads(example.answer)["number"]))


# ---- the solver


@pytest.mark.parametrize(
    ("face_cards", "count", "with_a_face", "probability"), [("ten", 1236, None, 0.731), ("ranks", 1362, 796, 0.792)]
)
def test_as_many_hands_can_be_solved_as_the_specification_counts(face_cards, count, with_a_face, probability):
    hands = solvable(4, 13, face_cards, 24)
    assert len(hands) == count
    assert with_a_face in (None, sum(max(hand) > 10 for hand in hands))
    assert sum(draw_probability(hand, 13) for hand in hands) == pytest.approx(probability, abs=5e-4)


def test_there_are_1820_hands_and_their_probabilities_add_up_to_one():
    hands = list(itertools.combinations_with_replacement(range(1, 14), 4))
    assert len(hands) == 1820
    assert sum(draw_probability(hand, 13) for hand in hands) == 1


def brute_force(hand: tuple[int, ...], target: int) -> bool:
    """Every order, every operator and every way to set parentheses, written out: shares nothing with the solver."""

    def apply(symbol, a, b):
        if a is None or b is None or (symbol == "/" and b == 0):
            return None
        return {"+": lambda: a + b, "-": lambda: a - b, "*": lambda: a * b, "/": lambda: a / b}[symbol]()

    for order in set(itertools.permutations(map(Fraction, hand))):
        a, b, c, d = order
        for x, y, z in itertools.product("+-*/", repeat=3):
            if target in (
                apply(z, apply(y, apply(x, a, b), c), d),
                apply(z, apply(x, a, apply(y, b, c)), d),
                apply(x, a, apply(z, apply(y, b, c), d)),
                apply(x, a, apply(y, b, apply(z, c, d))),
                apply(y, apply(x, a, b), apply(z, c, d)),
            ):
                return True
    return False


def test_the_solver_finds_a_solution_exactly_where_brute_force_does():
    generator = random.Random(7)
    for _ in range(40):
        hand = tuple(generator.randint(1, 13) for _ in range(4))
        target = generator.choice((24, 24, 12, 0, 7, 100))
        assert (solve(hand, target) is not None) == brute_force(hand, target), (hand, target)


def test_every_solution_is_one_by_the_interpreters_arithmetic():
    for hand in sorted(solvable(4, 13, "ranks", 24)):
        text = solve(hand).text
        assert sorted(map(int, re.findall(r"\d+", text))) == list(hand), (hand, text)
        assert eval(re.sub(r"\d+", r"Fraction(\g<0>)", text)) == 24, (hand, text)  # the solver's own text, of digits and +-*/()


def test_every_step_of_a_solution_is_right_and_uses_what_is_there():
    for hand in sorted(solvable(4, 10, "ten", 24)):
        left = Counter(map(str, hand))
        for step in map(str, solve(hand).steps):
            text, result = step.split("=")
            a, _, b = re.fullmatch(r"(\([^()]*\)|\d+)([-+*/])(\([^()]*\)|\d+)", text).groups()
            value = eval(re.sub(r"\d+", r"Fraction(\g<0>)", text))
            assert value == Fraction(result), (hand, step)
            left.subtract((a.strip("()"), b.strip("()")))
            left[result] += 1
        assert {number: count for number, count in left.items() if count} == {"24": 1}, hand


@pytest.mark.parametrize(
    ("hand", "text"),
    [
        ((3, 3, 8, 8), "8/(3-8/3)"),  # only with fractions
        ((1, 5, 5, 5), "(5-1/5)*5"),
        ((3, 3, 7, 7), "(3/7+3)*7"),
        ((4, 4, 10, 10), "(10*10-4)/4"),
        ((1, 1, 1, 1), None),
        ((1, 1, 1, 2), None),
        ((1, 7, 13, 13), "(13*13-1)/7"),
    ],
)
def test_known_hands(hand, text):
    found = solve(hand)
    assert (found and found.text) == text


def test_a_solution_depends_on_the_numbers_and_not_on_their_order():
    assert {solve(order).text for order in itertools.permutations((2, 3, 8, 10))} == {solve((2, 3, 8, 10)).text}


def test_fractions_and_negative_numbers_come_only_where_nothing_else_does():
    # (5-1/5)*5 has to, 3*2+8+10 could as well be written with both.
    assert solve((2, 3, 8, 10)).cost[:2] == (0, 0)
    assert not any(solve(hand).cost[1] for hand in solvable(4, 13, "ranks", 24))


# ---- splits


@pytest.mark.parametrize(
    "keys", [{}, {"face_cards": "ranks"}, EASY, {"num_cards": 3}, {"num_cards": 3, "max_rank": 5, "target": 6}]
)
def test_splits_share_no_multiset_of_numbers_and_leave_training_the_most(keys):
    task = make_task(**keys)
    hands = {split: [hand_of(example) for example in task.examples(split)] for split in SPLITS}
    assert {split: len(found) for split, found in hands.items()} == {"train": 400, "validation": 60, "test": 60}
    train, validation, test = (set(hands[split]) for split in SPLITS)
    assert len(train | validation | test) == len(train) + len(validation) + len(test)
    assert len(train) >= len(test)


def test_held_out_by_order_no_order_is_shared_and_unseen_numbers_are_a_set_of_their_own():
    task, strict = make_task(held_out="order", **EASY), make_task(**EASY)
    sets = {split: task.examples(split) for split in SPLITS} | task.evaluation_sets()
    assert set(sets) == {*SPLITS, "numbers_ood"}
    orders = {name: {tuple(json.loads(e.answer)["number"]) for e in examples} for name, examples in sets.items()}
    assert sum(map(len, orders.values())) == len(set().union(*orders.values()))
    keys = {name: {hand_of(e) for e in examples} for name, examples in sets.items()}
    assert not keys["numbers_ood"] & (keys["train"] | keys["validation"] | keys["test"])
    assert len(keys["test"] & keys["train"]) > len(keys["test"]) / 2
    assert [hand_of(e) for e in sets["numbers_ood"]] == [hand_of(e) for e in strict.examples("test")]


def test_every_hand_is_solvable_and_of_the_cards_shown():
    for rule in ("ten", "ranks"):
        task = make_task(face_cards=rule)
        for example in task.examples("train"):
            labels = json.loads(re.search(r"\[[^\]]*\]$", example.messages[0]["content"]).group())
            assert labels == [label for label, _ in example.metadata["cards"]] == json.loads(example.answer)["cards"]
            ranks = [("A", *map(str, range(2, 11)), "J", "Q", "K").index(label) + 1 for label in labels]
            assert numbers(ranks, rule) == tuple(json.loads(example.answer)["number"])
            assert solve(hand_of(example)) is not None


def test_ranks_come_as_often_as_in_the_game():
    # Redrawn until solvable, so not quite uniform; a rank that never comes, or a wrong range, would be far off.
    task = make_task(num_train=4000, num_test=0, num_validation=0)
    seen = Counter(label for example in task.examples("train") for label, _ in example.metadata["cards"])
    hands = {hand: draw_probability(hand, 13) for hand in solvable(4, 13, "ten", 24)}
    for rank, label in enumerate(("A", *map(str, range(2, 11)), "J", "Q", "K"), 1):
        expected = sum(p * hand.count(rank) for hand, p in hands.items()) / 4 / sum(hands.values())
        assert seen[label] / 16000 == pytest.approx(float(expected), abs=0.01), label


def test_hands_depend_on_config_and_seed_and_test_hands_on_the_evaluation_seed_alone():
    one, same, other = make_task(1), make_task(1), make_task(2)
    assert all(one.examples(split) == same.examples(split) for split in SPLITS)
    assert one.examples("train") != other.examples("train")
    assert one.examples("validation") != other.examples("validation")
    assert one.examples("test") == other.examples("test")
    assert one.examples("test") != make_task(1, evaluation_seed=43).examples("test")


def test_the_evaluation_has_the_protocols_size():
    assert len(make_task(num_test=GeneralPointsConfig().num_test).examples("test")) == 234


@pytest.mark.parametrize("rule", ["ten", "ranks"])
def test_the_rules_other_set_says_and_judges_by_the_other_rule_and_has_a_face_card_in_each_hand(rule):
    task = make_task(face_cards=rule)
    ((name, examples),) = task.evaluation_sets().items()
    assert (name, len(examples)) == ("rule_ood", 60)
    told = {"ten": "J counts 11, Q counts 12 and K counts 13", "ranks": "J, Q and K count 10 each"}[rule]
    for example in examples:
        assert told in example.messages[0]["content"]
        assert {label for label, _ in example.metadata["cards"]} & set("JQK")
        assert task.environment()(example.answer, (example.demonstration,), True).correct
    assert max(max(hand_of(example)) for example in examples) == {"ten": 13, "ranks": 10}[rule]


def test_the_other_colour_has_the_test_hands():
    task = make_task(form="image", suits="red")
    sets = task.evaluation_sets()
    assert set(sets) == {"rule_ood", "visual_ood"}
    assert [hand_of(e) for e in sets["visual_ood"]] == [hand_of(e) for e in task.examples("test")]
    suits = {name: {suit for e in examples for _, suit in e.metadata["cards"]} for name, examples in sets.items()}
    assert suits == {"visual_ood": {"spades", "clubs"}, "rule_ood": {"hearts", "diamonds"}}


def test_without_face_cards_there_is_no_other_rule():
    assert make_task(**EASY).evaluation_sets() == {}


# ---- what is demonstrated


@pytest.mark.parametrize("reward", ["original", "binary"])
@pytest.mark.parametrize("keys", [{}, {"form": "image"}, EASY, {"style": "compact", "face_cards": "ranks"}])
def test_every_demonstration_earns_the_full_reward(keys, reward):
    task = make_task(reward=reward, **keys)
    full = {"original": 5.0, "binary": 1.0}[reward]
    assert all(task.verifier()(e.answer, e.demonstration, True).reward == full for e in task.examples("train"))


@pytest.mark.parametrize("keys", [{}, {"form": "image"}, EASY])
def test_a_demonstration_of_several_turns_fails_is_told_and_succeeds(keys):
    task = make_task(max_turns=5, demonstration_turns=3, **keys)
    environment, lengths = task.environment(), Counter()
    for example in task.examples("train"):
        turns = (example.demonstration,) if isinstance(example.demonstration, str) else example.demonstration
        said = turns[::2]
        lengths[len(said)] += 1
        for turn in range(1, len(said)):
            verdict = environment(example.answer, said[:turn], True)
            assert (verdict.reward, verdict.follow_up) == (-turn, turns[2 * turn - 1])
        assert environment(example.answer, said, True).reward == 5 - (len(said) - 1)
        assert environment(example.answer, said, True).correct
    assert lengths.keys() == {1, 2, 3}
    assert min(lengths.values()) > 80, "lengths are equally likely"


def test_compact_text_is_short_and_the_character_tokenizer_knows_it():
    for keys in (EASY, {"style": "compact", "max_turns": 5, "demonstration_turns": 2}):
        for example in make_task(**keys).examples("train"):
            texts = [example.messages[0]["content"], *(
                [example.demonstration] if isinstance(example.demonstration, str) else example.demonstration
            )]  # fmt: skip
            assert set("".join(texts)) <= set(CHARACTERS)
            assert max(map(len, texts)) <= 64


def test_a_compact_prompt_and_its_demonstration():
    example = make_task(**EASY).examples("train")[0]
    labels = [label for label, _ in example.metadata["cards"]]
    assert example.messages[0]["content"] == f"{' '.join(labels)}="
    formula = example.demonstration.rpartition("#")[2]
    assert formula == solve(hand_of(example), 12).text
    assert eval(formula) == 12
    assert make_task(style="compact").examples("test")[0].messages[0]["content"].endswith("t=")
    assert make_task(style="compact", face_cards="ranks").examples("test")[0].messages[0]["content"].endswith("r=")


def test_the_picture_s_prompt_does_not_give_the_cards_away():
    prompts = {example.messages[0]["content"] for example in make_task(form="image").examples("train")}
    assert len(prompts) == 1
    assert "picture" in prompts.pop()


def test_a_compact_step_names_the_numbers_that_are_left():
    # Read by itself: each step takes two numbers of the ones left and puts its result in their place.
    for example in make_task(**EASY).examples("train"):
        left = Counter(map(str, json.loads(example.answer)["number"]))
        for part in example.demonstration.rpartition("#")[0].split(";"):
            step, *rest = part.split(" ")
            text, result = step.split("=")
            left.subtract(
                number.strip("()") for number in re.fullmatch(r"(\([^()]*\)|\d+)[-+*/](\([^()]*\)|\d+)", text).groups()
            )
            assert Counter([*rest]) == +left, example.demonstration
            left[result] += 1
        assert +left == {"12": 1}


# ---- settings


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"max_turns": 6}, "task.max_turns: found 6, expected 1 to 5"),
        ({"max_turns": 2, "demonstration_turns": 3}, "task.demonstration_turns: found 3, expected 1 to task.max_turns, 2"),
        ({"num_cards": 5}, "task.num_cards: found 5, expected 2 to 4"),
        ({"max_rank": 14}, "task.max_rank: found 14, expected 1 to 13"),
        ({"num_train": 0}, "task.num_train: found 0, expected at least 1"),
        ({"form": "image", "style": "compact"}, "task.style: found 'compact', expected json, as task.form is image"),
    ],
)
def test_bad_settings_are_refused_in_one_line_naming_the_key(keys, message):
    with pytest.raises(UserError, match=f"^{re.escape(message)}$"):
        make_task(**keys)


def test_a_game_without_enough_solvable_hands_is_refused():
    message = "task.num_cards, max_rank, target: found 0 solvable hands with 2, 3, 24, expected at least 8 to share out"
    with pytest.raises(UserError, match=f"^{re.escape(message)}$"):
        make_task(num_cards=2, max_rank=3).examples("train")


def test_a_game_without_enough_orders_to_keep_apart_is_refused():
    with pytest.raises(
        UserError, match=r"^task\.num_validation \+ num_test: found 120, expected at most \d+, half of the \d+ hands"
    ):
        make_task(num_cards=3, max_rank=4, target=12, held_out="order").examples("train")


def test_files_that_would_be_ignored_are_refused():
    with pytest.raises(UserError, match=r"^data\.train: found 'hands\.jsonl', expected null"):
        GeneralPointsTask(GeneralPointsConfig(), DataConfig(train="hands.jsonl"), 1)


def test_a_single_response_is_not_judged_where_there_may_be_several():
    with pytest.raises(UserError, match=r"^task\.max_turns: found 2, expected 1"):
        make_task(max_turns=2).verifier()


@pytest.mark.parametrize("name", ["general_points", "general_points_image", "general_points_small"])
def test_the_shipped_settings_make_a_task(name):
    settings = yaml.safe_load((Path(__file__).parents[2] / "conf" / "task" / f"{name}.yaml").read_text())
    task = load_plugin("task", settings).build(DataConfig(), 1)
    assert task.examples("test")


def test_the_two_core_run_has_room_for_every_prompt_and_demonstration():
    from nemo_amft.config.load import load

    config = load(["--config-name", "general_points_text"], check=False)
    task = config.task.build(config.data, config.trainer.seed)
    for split in SPLITS:
        for example in task.examples(split):
            # A token a character, and one to begin and to end with.
            assert len(example.messages[0]["content"]) < config.data.max_prompt_tokens
            assert len(example.demonstration) < min(config.data.max_demonstration_tokens, config.rollout.max_new_tokens)
