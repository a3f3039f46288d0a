"""V-IRL navigation: headings, reading answers, what is said, rewards, and the task."""

import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nemo_amft.config.schema import DataConfig
from nemo_amft.data.character_tokenizer import CHARACTERS
from nemo_amft.tasks.rewards import RewardPool
from nemo_amft.tasks.virl import NavigationEnvironment, VirlConfig, VirlTask
from nemo_amft.tasks.virl.actions import COMPACT, KEYS, WORDS, AnswerError, read_action, read_compact, read_full
from nemo_amft.tasks.virl.environment import detail_of, write_answer
from nemo_amft.tasks.virl.headings import bearing, compass_name, distance, move, side_name, turn_name
from nemo_amft.tasks.virl.routes import NOTHING, Node, Route, current_instruction, instructions
from nemo_amft.tasks.virl.texts import CompactTexts, FullTexts
from nemo_amft.types import UserError

SPLITS = ("train", "validation", "test")
HERE = (40.0, -74.0)


def make_task(seed: int = 1, data: DataConfig | None = None, **config) -> VirlTask:
    defaults = {"num_train": 60, "num_validation": 10, "num_test": 10, "num_ood": 6}
    return VirlTask(VirlConfig(**{**defaults, **config}), data or DataConfig(), seed)


def corner_route() -> Route:
    """Face south, walk north past an intersection, turn right at the mill, stop at the inn."""
    north, east, mill = "turn_direction(north)", "turn_direction(east)", "Old Mill is on your left front"
    return Route(
        "corner",
        (
            Node(HERE, 180, north, NOTHING, False),
            Node(HERE, 0, "forward()", "Red Barn is on your right", True),
            Node(HERE, 0, east, mill, True),
            Node(HERE, 90, "forward()", NOTHING, False),
            Node(HERE, 90, "stop()", "The destination Green Inn is on your left", False),
        ),
    )


def episode(route: Route, places: range | None = None, space="absolute") -> str:
    return write_answer(route, space, FullTexts(route, space), places or range(len(route.nodes)))


def say(action: str, intersection: bool = False) -> str:
    seen = "You observe an intersection" if intersection else "No landmarks nearby"
    return json.dumps({"current observation": seen, "current instruction": "", "action": action})


# ---- headings

# By counting steps of one degree around a list, which wraps by itself: no modulus, no sign.
CIRCLE = list(range(360)) * 3


def clockwise_steps(start: int, end: int) -> int:
    at = CIRCLE.index(start)
    return CIRCLE.index(end, at) - at


@pytest.mark.parametrize("start", [0, 1, 44, 45, 46, 90, 179, 180, 181, 270, 300, 315, 350, 359])
def test_relative_turns_wrap_around_north(start):
    for end in range(360):
        right = clockwise_steps(start, end)
        if right == 0 or right >= 315:
            expected = "slightly left"
        elif right <= 45:
            expected = "slightly right"
        else:
            expected = "right" if right < 180 else "left"
        assert turn_name(start, end) == expected, (start, end)


@pytest.mark.parametrize(
    ("start", "end", "word"), [(350, 10, "slightly right"), (10, 350, "slightly left"), (315, 45, "right"), (45, 315, "left")]
)
def test_turns_that_the_original_gets_wrong_at_north(start, end, word):
    assert turn_name(start, end) == word


def test_every_heading_has_the_compass_name_whose_direction_is_nearest():
    for heading in range(360):
        steps = {
            name: min(clockwise_steps(heading, 45 * i), clockwise_steps(45 * i, heading))
            for i, name in enumerate(WORDS["absolute"])
        }
        assert steps[compass_name(heading)] == min(steps.values()) <= 22
        assert compass_name(heading + 720) == compass_name(heading - 360) == compass_name(heading)


@pytest.mark.parametrize(
    ("heading", "towards", "side"),
    [(0, 10, "front"), (350, 10, "front"), (350, 30, "right front"), (90, 0, "left"), (270, 0, "right"), (200, 20, "behind")],
)
def test_sides_are_seen_from_where_one_faces(heading, towards, side):
    assert side_name(heading, towards) == side


@given(st.floats(-80, 80), st.floats(-179, 179), st.floats(0, 359.9), st.floats(1, 2000))
def test_moving_by_heading_and_distance_arrives_there(latitude, longitude, heading, metres):
    start = (latitude, longitude)
    end = move(start, heading, metres)
    assert distance(start, end) == pytest.approx(metres, rel=2e-3)
    assert abs((bearing(start, end) - heading + 180) % 360 - 180) < 0.2


def test_a_degree_of_latitude_is_111_km():
    assert distance((10.0, 5.0), (11.0, 5.0)) == pytest.approx(111_195, rel=1e-3)


# ---- reading answers

GOOD = {"current observation": "You observe an intersection", "current instruction": "Go.", "action": "turn_direction(east)"}


@pytest.mark.parametrize("space", ["absolute", "relative"])
def test_every_action_of_a_space_is_read_and_the_others_turns_are_not(space):
    other = "relative" if space == "absolute" else "absolute"
    for action in ("forward()", "stop()", *(f"turn_direction({word})" for word in WORDS[space])):
        assert read_action(action, space) == action
    for word in WORDS[other]:
        assert read_action(f"turn_direction({word})", space) is None


@pytest.mark.parametrize(
    ("text", "action"),
    [
        (" turn_direction( 'slightly  left' ) ", "turn_direction(slightly left)"),
        ('turn_direction("left")', "turn_direction(left)"),
        ("stop ( )", "stop()"),
        ("stop(now)", None),
        ("forward", None),
        ("turn_direction()", None),
        ("turn_direction(left) stop()", None),
        ("turn_direction((left))", None),
        ("Stop()", None),
        ("", None),
    ],
)
def test_actions_are_read_with_spaces_and_quotes_put_right_and_nothing_else(text, action):
    assert read_action(text, "relative") == action


@pytest.mark.parametrize(
    "text",
    [
        json.dumps(GOOD),
        json.dumps(GOOD, indent=2),
        json.dumps(dict(reversed(GOOD.items()))),
        f"\n```json\n{json.dumps(GOOD)}\n```\n",
        json.dumps(GOOD)[:-1] + ",\n}",  # the original's own demonstrations end so
    ],
)
def test_a_right_answer_may_be_laid_out_in_several_ways(text):
    answer = read_full(text, "absolute")
    assert (answer.action, answer.intersection) == ("turn_direction(east)", True)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "it is not one JSON object"),
        ("turn_direction(east)", "it is not one JSON object"),
        (f"Sure! {json.dumps(GOOD)}", "it is not one JSON object"),
        (json.dumps([GOOD]), "it is not one JSON object"),
        (json.dumps(GOOD) + json.dumps(GOOD), "it is not one JSON object of texts"),
        (json.dumps(GOOD)[:-1] + ",,}", "it is not one JSON object of texts"),
        ("{,}", "it is not one JSON object of texts"),
        (json.dumps({**GOOD, "action": 5}), "it is not one JSON object of texts"),
        (json.dumps({**GOOD, "action": None}), "it is not one JSON object of texts"),
        (json.dumps({**GOOD, "action": {"action": "stop()"}}), "it is not one JSON object of texts"),
        (json.dumps(GOOD).replace('"', "'"), "it is not one JSON object of texts"),
        (json.dumps(GOOD)[:-1] + ', "action": "stop()"}', "the key 'action' is given twice"),
        (json.dumps({**GOOD, "note": "x"}), "it has a key that was not asked for"),
        (json.dumps({"action": "stop()"}), "the key 'current observation' is missing"),
        ("{}", "the key 'current observation' is missing"),
        (json.dumps(GOOD).replace("Go.", r"\x"), "a text in it has a bad escape"),
        (json.dumps({**GOOD, "action": "stop()" * 2000}), "it has more than 8192 characters"),
        ("{" * 5000, "it is not one JSON object"),
        ("{" * 2000 + "}" * 2000, "it is not one JSON object of texts"),
    ],
)
def test_what_is_not_the_one_object_asked_for_is_refused_with_the_reason(text, reason):
    with pytest.raises(AnswerError, match=f"^{re.escape(reason)}$"):
        read_full(text, "absolute")


def test_text_within_the_answer_is_never_taken_for_the_action():
    injected = '"}, {"action": "stop()"} "action": "stop()", \\" forward()'
    answer = read_full(json.dumps({**GOOD, "current observation": injected, "current instruction": injected}), "absolute")
    assert (answer.action, answer.intersection) == ("turn_direction(east)", False)


@given(st.text(), st.text(), st.text())
def test_any_three_texts_written_as_json_are_read_as_what_they_are(seen, line, action):
    text = json.dumps(dict(zip(KEYS, (seen, line, action), strict=True)))
    if len(text) <= 8192:
        answer = read_full(text, "absolute")
        assert answer.intersection == ("intersection" in seen.lower())
        assert answer.action == read_action(action, "absolute")


@given(st.text(alphabet='{}":, \\\n`actionforwd()currentbsvi[]', max_size=300) | st.text(max_size=300))
@settings(max_examples=300)
def test_no_text_breaks_the_readers(text):
    for space in ("absolute", "relative"):
        for read in (read_full, read_compact):
            try:
                answer = read(text, space)
            except AnswerError:
                continue
            assert answer.action is None or read_action(answer.action, space) == answer.action
        read_action(text, space)


@pytest.mark.parametrize(
    ("text", "action", "intersection"),
    [("+NE", "turn_direction(northeast)", True), ("-f", "forward()", False), (" -s\n", "stop()", False), ("+l", None, True)],
)
def test_compact_answers(text, action, intersection):
    answer = read_compact(text, "absolute")
    assert (answer.action, answer.intersection) == (action, intersection)


@pytest.mark.parametrize("text", ["", "+", "f", "+NEE", "++f", "+f-f", "+\u0660", "forward()"])
def test_compact_answers_of_another_form_are_refused(text):
    with pytest.raises(AnswerError):
        read_compact(text, "absolute")


# ---- what is said


def test_instructions_name_turns_both_ways_and_where_to_turn_next():
    assert instructions(corner_route()) == (
        "First, turn left to face north.",
        "Move forward until you reach the next intersection where Old Mill is on your left front.",
        "Turn right to face east.",
        "Move forward until you reach the destination, where Green Inn is on your left.",
    )
    assert [instructions(corner_route()).index(current_instruction(corner_route(), place)) for place in range(5)] == [
        0,
        1,
        2,
        3,
        3,
    ]


def test_the_prompt_in_the_middle_of_a_route_has_the_history_and_the_present_view():
    prompt = FullTexts(corner_route(), "relative").prompt(2)
    history = (
        "O_1: No landmarks nearby\nA_1: turn_direction(left)\n"
        "O_2: Red Barn is on your right; You observe an intersection\nA_2: forward()\n"
        "O_3: Old Mill is on your left front; You observe an intersection\nA_3:\n"
    )
    assert history in prompt
    assert "left, right, slightly left, slightly right" in prompt
    assert "northwest" not in prompt


def test_the_image_form_keeps_the_present_landmark_to_the_image_and_says_which_view_is_which():
    prompt = FullTexts(corner_route(), "absolute", "image").prompt(1)
    assert "O_2: You observe an image of 4 views; You observe an intersection\nA_2:" in prompt
    assert "Red Barn" not in prompt
    for words in ("ahead of you (top left)", "right (top right)", "behind you (bottom left)", "left (bottom right)"):
        assert words in prompt


def test_compact_texts_say_the_same_in_characters():
    texts = CompactTexts(corner_route(), "absolute")
    barn, mill, inn = (texts.next_view(place)[0] for place in (1, 2, 4))
    assert len({barn, mill, inn}) == 3
    assert texts.prompt(0) == f"a:LN,{mill}RE,{inn}; .-="
    assert texts.prompt(3) == f"a:LN,{mill}RE,{inn}; .-N {barn}+f {mill}+E .-="
    assert [texts.answer(place) for place in range(5)] == ["-N", "+f", "+E", "-f", "-s"]
    assert [CompactTexts(corner_route(), "relative").answer(place) for place in range(5)] == ["-L", "+f", "+R", "-f", "-s"]


def test_landmarks_of_other_cities_have_other_characters_in_the_short_form():
    task = make_task(style="compact", turns="episode")
    examples = {"train": task.examples("train"), "ood": task.evaluation_sets()["visual_ood"]}
    seen = {name: {c for e in found for c in e.messages[0]["content"][2:]} for name, found in examples.items()}
    assert seen["train"] & seen["ood"] <= set("NESWLRlr,;. -+=")


def test_the_short_forms_of_actions_are_all_different():
    assert len(set(COMPACT.values())) == len(COMPACT) == 14


# ---- rewards

NORTH, FORWARD, EAST, STOP = say("turn_direction(north)"), say("forward()"), say("turn_direction(east)", True), say("stop()")


@pytest.mark.parametrize(
    ("responses", "reward", "right", "place", "end"),
    [
        ([NORTH], 1.0, 1, 1, "open"),
        ([NORTH, FORWARD, EAST, FORWARD, STOP], 5.0, 5, 5, "arrived"),
        ([STOP], -1.0, 0, 0, "open"),
        ([STOP, STOP], -2.0, 0, 0, "failed"),
        ([STOP, NORTH], 0.0, 1, 1, "open"),  # a second attempt
        ([STOP, NORTH, STOP], -1.5, 1, 1, "open"),  # and attempts are counted anew; this one overlooks the intersection
        ([STOP, NORTH, say("stop()", True)], -1.0, 1, 1, "open"),
        ([say("stop()", True)], -1.5, 0, 0, "open"),  # claims one where there is none
        ([say("turn_direction(north)", True)], 1.0, 1, 1, "open"),  # a right action is right, whatever is said of the place
        ([NORTH, FORWARD, EAST, FORWARD, FORWARD, STOP], 4.0, 5, 5, "arrived"),
        ([NORTH, FORWARD, EAST, FORWARD, FORWARD, FORWARD], 2.0, 4, 4, "failed"),
        (["", NORTH], 0.0, 1, 1, "open"),
        (["{}", "no"], -2.0, 0, 0, "failed"),
        ([say("turn_direction(left)"), NORTH], 0.0, 1, 1, "open"),  # of the other action space
        ([say("fly()"), NORTH], 0.0, 1, 1, "open"),
        ([STOP, STOP, NORTH], -2.0, 0, 0, "failed"),  # nothing counts after the end
    ],
)
def test_an_episode_is_rewarded_as_worked_out_by_hand(responses, reward, right, place, end):
    answer = episode(corner_route())
    verdict = NavigationEnvironment()(answer, responses, True)
    calls = min(len(responses), 2) if end == "failed" and place == 0 else len(responses)
    assert (verdict.reward, verdict.correct, verdict.status) == (reward, end == "arrived", "ok")
    accuracy = round(right / calls, 4)
    expected = {"step_accuracy": accuracy, "right": right, "calls": calls, "place": place, "positions": 5, "end": end}
    assert detail_of(verdict) == expected
    assert (verdict.follow_up is not None) == (end == "open")
    binary = NavigationEnvironment(reward="binary")(answer, responses, True)
    assert (binary.reward, binary.correct, binary.follow_up) == (float(end == "arrived"), end == "arrived", verdict.follow_up)


def test_a_response_that_was_cut_is_wrong_and_ends_the_episode():
    verdict = NavigationEnvironment()(episode(corner_route()), [NORTH, FORWARD], False)
    assert (verdict.reward, verdict.correct, verdict.follow_up, detail_of(verdict)["end"]) == (0.0, False, None, "cut")


def test_more_attempts_may_be_allowed_or_one():
    assert NavigationEnvironment(attempts=1)(episode(corner_route()), [STOP], True).follow_up is None
    assert NavigationEnvironment(attempts=3)(episode(corner_route()), [STOP, STOP], True).follow_up is not None


def test_the_next_message_is_the_next_view_or_says_what_was_wrong():
    def follow_up(*responses):
        return NavigationEnvironment()(episode(corner_route()), responses, True).follow_up

    seen = "A_1: turn_direction(north)\nO_2: Red Barn is on your right; You observe an intersection\nA_2:"
    again = "You have not moved. Answer again, in the same form."
    assert follow_up(NORTH) == follow_up(STOP, NORTH) == seen
    assert follow_up(STOP) == f"That is not the right action here. {again}"
    assert follow_up(say("stop()", True)) == f"That is not the right action: you are not at an intersection. {again}"
    assert follow_up(NORTH, STOP) == f"That is not the right action: you are at an intersection. {again}"
    assert follow_up(say("fly()")) == f"That is not one of the actions. {again}"
    assert follow_up("hm") == f"The answer cannot be read: it is not one JSON object. {again}"


def test_a_step_is_right_or_wrong_at_once():
    answer = episode(corner_route(), range(2, 3))
    environment = make_task(turns="step").environment()
    for response, reward, correct in ((EAST, 1.0, True), (say("forward()", True), -1.0, False), (FORWARD, -1.5, False)):
        verdict = environment(answer, [response], True)
        assert (verdict.reward, verdict.correct, verdict.follow_up) == (reward, correct, None)


# ---- the task

VARIANTS = [
    {"turns": turns, "style": style, "action_space": space, "form": form}
    for turns in ("episode", "step")
    for style, form in (("full", "text"), ("full", "image"), ("compact", "text"))
    for space in ("absolute", "relative")
]


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: "-".join(variant.values()))
def test_every_demonstration_is_a_conversation_that_the_environment_leads_to_success(variant):
    task = make_task(**variant, num_train=20, num_validation=3, num_test=3, num_ood=3)
    environment = task.environment()
    sets = {split: task.examples(split) for split in SPLITS} | task.evaluation_sets()
    assert all(sets.values())
    for example in (example for examples in sets.values() for example in examples):
        said = example.demonstration
        turns = [said] if isinstance(said, str) else list(said)
        assert len(turns[::2]) <= task.max_turns
        for count in range(1, len(turns[::2]) + 1):
            verdict = environment(example.answer, turns[: 2 * count : 2], True)
            assert verdict.reward == count
            assert verdict.follow_up == (turns[2 * count - 1] if 2 * count < len(turns) else None)
        assert verdict.correct
        assert detail_of(verdict)["step_accuracy"] == 1.0


def test_step_examples_are_the_positions_of_the_episodes():
    steps, episodes = make_task(turns="step").examples("test"), make_task().examples("test")
    answers = [answer for example in episodes for answer in example.demonstration[::2]]
    assert [example.demonstration for example in steps] == answers
    assert make_task(turns="step").max_turns == 1
    longest = max(len(example.demonstration) // 2 + 1 for s in SPLITS for example in make_task().examples(s))
    assert make_task().max_turns >= 2 * longest


@pytest.mark.parametrize("style", ["full", "compact"])
@pytest.mark.parametrize("turns", ["episode", "step"])
def test_no_problem_text_is_in_two_splits(style, turns):
    task = make_task(style=style, turns=turns, num_train=600, num_test=100, legs=(2, 2))
    sets = {split: task.examples(split) for split in SPLITS} | {"ood": task.evaluation_sets()["visual_ood"]}
    prompts = [{example.messages[0]["content"] for example in examples} for examples in sets.values()]
    assert [len(p) for p in prompts] == [len(examples) for examples in sets.values()]
    assert len(set.union(*prompts)) == sum(map(len, prompts))


def test_examples_depend_on_settings_and_seed_alone():
    first, second = make_task(), make_task()
    assert all(first.examples(split) == second.examples(split) for split in SPLITS)
    assert first.examples("test") != make_task(seed=2).examples("test")


def test_rule_ood_is_the_test_routes_in_the_other_actions_and_visual_ood_another_city():
    task = make_task(turns="episode")
    test, sets = task.examples("test"), task.evaluation_sets()
    assert [example.metadata for example in sets["rule_ood"]] == [example.metadata for example in test]
    assert all("turn_direction(left)" not in example.answer for example in test)
    turns = {a for e in sets["rule_ood"] for a, _, _ in json.loads(e.answer)["positions"] if a.startswith("turn")}
    assert turns <= {f"turn_direction({word})" for word in WORDS["relative"]}
    assert len(turns) >= 3
    assert len(sets["visual_ood"]) == 6
    assert not {e.metadata["route"] for e in sets["visual_ood"]} & {
        e.metadata["route"] for s in SPLITS for e in task.examples(s)
    }


def test_all_eight_directions_and_four_turns_occur_in_both_cities():
    for city in ("brick", "glass"):
        for space in ("absolute", "relative"):
            examples = make_task(city=city, action_space=space, num_train=200).examples("train")
            taken = {action for e in examples for action, _, _ in json.loads(e.answer)["positions"]}
            assert taken == {"forward()", "stop()", *(f"turn_direction({word})" for word in WORDS[space])}


def test_intersections_are_passed_without_a_turn_so_that_the_instructions_are_needed():
    positions = [p for e in make_task(num_train=200).examples("train") for p in json.loads(e.answer)["positions"]]
    at_intersections = [action for action, intersection, _ in positions if intersection]
    assert 0.2 < at_intersections.count("forward()") / len(at_intersections) < 0.8


def test_compact_text_is_short_and_of_the_character_tokenizer_s_alphabet():
    task = make_task(style="compact", turns="step", num_train=300)
    for example in task.examples("train"):
        prompt = example.messages[0]["content"]
        assert set(prompt + example.demonstration) <= set(CHARACTERS)
        assert len(prompt) <= 112
        assert len(example.demonstration) <= 3


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"legs": (1, 2)}, "task.legs: found (1, 2), expected two numbers, the first at least 2, the second no smaller"),
        ({"legs": (3, 2)}, "task.legs: found (3, 2), expected two numbers, the first at least 2, the second no smaller"),
        ({"blocks": (0, 2)}, "task.blocks: found (0, 2), expected two numbers, the first at least 1, the second no smaller"),
        ({"num_train": 0}, "task.num_train: found 0, expected at least 1"),
        ({"attempts": 0}, "task.attempts: found 0, expected at least 1"),
        ({"positions_between": 0}, "task.positions_between: found 0, expected at least 1"),
        ({"view_size": 5}, "task.view_size: found 5, expected at least 32"),
        ({"style": "compact", "form": "image"}, "task.style: found 'compact', expected 'full', as form is 'image'"),
        ({"source": "nowhere"}, "task.source: found 'nowhere', expected 'synthetic' or a folder"),
        ({"visual_ood": "nowhere"}, "task.visual_ood: found 'nowhere', expected null or a folder"),
    ],
)
def test_bad_settings_are_refused_in_one_line_naming_the_key(config, message):
    with pytest.raises(UserError, match=f"^{re.escape(message)}$"):
        make_task(**config)


def test_routes_that_no_city_has_are_refused():
    message = r"^task\.legs, task\.blocks: found 0 different routes in the city, expected 80$"
    with pytest.raises(UserError, match=message):
        make_task(legs=(3, 3), blocks=(12, 12)).examples("train")


def test_files_that_would_be_ignored_are_refused():
    with pytest.raises(UserError, match=r"^data\.train: found 'routes\.jsonl', expected null"):
        make_task(data=dataclasses.replace(DataConfig(), train="routes.jsonl"))


def test_reward_workers_judge_conversations_without_loading_anything_heavy():
    code = "import sys, nemo_amft.tasks.virl.environment as e; print(sorted({'torch', 'numpy', 'PIL'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path.cwd())
    assert done.stdout.strip() == "[]"
    example = make_task().examples("test")[0]
    answers = list(example.demonstration[::2])
    with RewardPool(make_task().environment(), 1, 10.0, 512) as pool:
        middle, end = pool.score([(example.answer, answers[:1], True), (example.answer, answers, True)])
    assert (middle.reward, middle.follow_up) == (1.0, example.demonstration[1])
    assert (end.reward, end.correct, end.follow_up) == (len(answers), True, None)
    assert detail_of(end)["end"] == "arrived"
