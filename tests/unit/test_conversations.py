"""Episodes of several turns as token ids: what is kept, what is trained on, where they end."""

import pytest
from transformers import AutoTokenizer

from nemo_amft.algorithms.conversations import Conversation
from nemo_amft.algorithms.sampling import Sampler
from nemo_amft.config.schema import DataConfig
from nemo_amft.data.character_tokenizer import save_character_tokenizer
from nemo_amft.data.chat import ChatTemplate, responses
from nemo_amft.data.filtering import refuse_truncation
from nemo_amft.observe.timers import PhaseTimers
from nemo_amft.parallel.groups import Place
from nemo_amft.tasks.rewards import RewardPool
from nemo_amft.tasks.virl import VirlConfig, VirlTask
from nemo_amft.types import Completion, Example, UserError, Verdict

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<eos>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
DROPS_RESPONSES = "{% for m in messages %}{% if m['role'] != 'assistant' %}{{ m['content'] }}{% endif %}{% endfor %}"
SHOWS_IMAGES = (
    "{% for m in messages %}{% if m['content'] is string %}{{ m['content'] }}{% else %}"
    "{% for part in m['content'] %}{{ '@@@' if part['type'] == 'image' else part['text'] }}{% endfor %}{% endif %}{% endfor %}"
)
EPISODE = Example("e/1", ({"role": "user", "content": "go"},), "x", ("left", "no, try again", "right"))


@pytest.fixture
def tokenizer(tmp_path):
    save_character_tokenizer(tmp_path)
    return AutoTokenizer.from_pretrained(tmp_path)


@pytest.mark.parametrize("template", [None, CHATML], ids=["the project's", "chatml"])
def test_a_conversation_reads_as_the_template_writes_it(tokenizer, template):
    """Against the template's own rendering of the whole conversation, with the messages given at once."""
    tokenizer.chat_template = template or tokenizer.chat_template
    sequence = ChatTemplate(tokenizer).demonstration(EPISODE)
    roles = ("user", "assistant", "user", "assistant")
    messages = [{"role": r, "content": c} for r, c in zip(roles, ("go", *EPISODE.demonstration), strict=True)]
    whole = tokenizer.apply_chat_template(messages, tokenize=False)
    # After the last response the template may have more to say than its end token.
    assert whole.startswith(tokenizer.decode(sequence.tokens))
    assert sequence.tokens[-1] == tokenizer.eos_token_id


def test_only_the_responses_and_their_end_tokens_are_trained_on(tokenizer):
    sequence = ChatTemplate(tokenizer).demonstration(EPISODE)
    shown = tokenizer.decode([t for t, trained in zip(sequence.tokens, sequence.trained, strict=True) if trained])
    assert shown == "left<eos>right<eos>"
    assert responses(EPISODE) == ("left", "right")


def test_a_long_conversation_counts_as_cut_demonstration(tokenizer):
    chat = ChatTemplate(tokenizer, max_demonstration_tokens=12)
    sequence = chat.demonstration(EPISODE)
    assert sum(1 for _ in sequence.tokens) == len(chat.prompt_ids(EPISODE.messages)) + 12
    assert chat.num_truncated == 1
    with pytest.raises(UserError, match="1 of 1 demonstrations"):
        refuse_truncation([EPISODE], chat, 12, 0.5)


def test_a_template_that_leaves_responses_out_is_refused(tokenizer):
    tokenizer.chat_template = DROPS_RESPONSES
    with pytest.raises(UserError, match="leaves out a response's text"):
        ChatTemplate(tokenizer).follow_up("again")


def test_an_episode_keeps_the_ids_and_log_probs_that_were_drawn():
    talk = Conversation(EPISODE, (7, 8))
    talk.respond(Completion((20, 21, 1), (-0.5, -0.25, -0.125), True), "left")
    assert talk.go_on("no", [30, 31], [1], room=10)
    talk.respond(Completion((22, 1), (-1.0, -2.0), True), "right")
    talk.verdict = Verdict(1.0, True)
    sample = talk.sample()
    assert sample.sequence.tokens == (7, 8, 20, 21, 1, 30, 31, 22, 1)
    assert [i for i, trained in enumerate(sample.sequence.trained) if trained] == [2, 3, 4, 7, 8]
    assert sample.sequence.behavior_log_probs == (0, 0, -0.5, -0.25, -0.125, 0, 0, -1.0, -2.0)
    assert (sample.num_tokens, sample.num_turns, sample.finished) == (5, 2, True)
    assert sample.text == "left\n[user] no\n[assistant] right"


def test_a_cut_response_gets_an_end_token_that_is_not_the_policys():
    talk = Conversation(EPISODE, (7,))
    talk.respond(Completion((20, 21), (-0.5, -0.25), False), "le")
    assert talk.go_on("no", [30], [1], room=10)
    assert talk.tokens == [20, 21, 1, 30]
    assert talk.trained == [True, True, False, False]


@pytest.mark.parametrize(("room", "goes_on"), [(3, True), (2, False), (-5, False)])
def test_an_episode_without_room_ends_as_cut(room, goes_on):
    talk = Conversation(EPISODE, (7,))
    talk.respond(Completion((20, 1), (-0.5, -0.25), True), "left")
    assert talk.go_on("no", [30, 31, 32], [1], room) == goes_on
    assert talk.finished == goes_on
    assert len(talk.tokens) == (5 if goes_on else 2)


@pytest.mark.parametrize(
    ("last", "finished", "after"), [(9, True, [30]), (1, True, [9, 30]), (9, False, [1, 9, 30]), (21, True, [1, 9, 30])]
)
def test_a_response_that_ended_as_the_template_ends_a_turn_is_not_ended_twice(last, finished, after):
    """9 ends a turn in the template, and so may a response; 1 is the tokenizer's end of sequence; with 21 the policy has
    written what rollout.stop asks for, and the turn has yet to be ended."""
    talk = Conversation(EPISODE, (7,))
    talk.respond(Completion((20, last), (-0.5, -0.25), finished), "left")
    assert talk.go_on("no", [9, 30], [1, 9], room=10)
    assert talk.tokens == [20, last, *after]


def environment(answer: str, turns: list[str], finished: bool) -> Verdict:
    """The last of three turns counts."""
    return Verdict(float(turns[-1] == answer), turns[-1] == answer, follow_up=None if len(turns) == 3 else f"{len(turns)}?")


def test_the_pool_shows_an_environment_all_responses_and_brings_back_its_message():
    with RewardPool(environment, 1, 10.0, 500) as pool:
        first, last = pool.score([("x", ["a"], True), ("x", ["a", "b", "x"], True)])
    assert first == Verdict(0.0, False, follow_up="1?")
    assert last == Verdict(1.0, True)


class Walker:
    """Says what it is told, one text a call, to a single conversation, and remembers what it was shown."""

    def __init__(self, texts, encode):
        self.texts, self.encode, self.shown = iter(texts), encode, []

    def generate(self, requests, params):
        (request,) = requests
        self.shown.append((len(request.images), request.prompt_token_ids))
        ids = (*self.encode(next(self.texts)), 1)
        return [Completion(ids, (0.0,) * len(ids), True)]


def test_an_image_comes_with_each_new_position_and_none_with_a_second_try(tokenizer, monkeypatch):
    few = {"num_train": 1, "num_validation": 1, "num_test": 1, "num_ood": 1}
    task = VirlTask(VirlConfig(form="image", view_size=32, legs=(2, 2), **few), DataConfig(), 1)
    (example,) = task.examples("test")
    right = responses(example)
    tokenizer.chat_template = SHOWS_IMAGES
    chat = ChatTemplate(tokenizer)
    walker = Walker([right[0], "nonsense", *right[1:]], chat.encode)
    place = Place(0, 1, 0, 1, 0, 1, 0, 1)
    sampler = Sampler(
        walker, chat, None, place, 1, PhaseTimers(60.0), 1, True, (1,), 10**6, 10**6, several_turns=True, images=task.images
    )
    with RewardPool(task.environment(), 1, 10.0, 500) as pool:

        def grade(self, examples, said, finished):
            return pool.score([(examples[0].answer, list(said[0]), finished[0])])

        monkeypatch.setattr(Sampler, "grade", grade)  # without its exchange between ranks
        (group,) = sampler.roll_out("test", 0, [example], 1, 1000, 1.0)
    assert group.samples[0].verdict.correct
    assert [images for images, _ in walker.shown] == [1, 2, *range(2, len(right) + 1)]
    for images, prompt in walker.shown:
        assert chat.decode(prompt).count("@@@") == images  # a placeholder for each


def test_failures_of_grading_are_counted_whatever_was_graded(tokenizer, monkeypatch):
    chat, place = ChatTemplate(tokenizer), Place(0, 1, 0, 1, 0, 1, 0, 1)
    sampler = Sampler(None, chat, None, place, 1, PhaseTimers(60.0), 1, True, (1,), 10, 10)
    verdicts = [Verdict(1.0, True), Verdict(0.0, False, "timeout"), Verdict(0.0, False, "error"), Verdict(0.0, False, "error")]
    monkeypatch.setattr(Sampler, "_grade", lambda *_: verdicts)  # without its exchange between ranks
    assert sampler.failures() == {}
    for _ in range(2):  # a step's rollouts and its demonstrations
        sampler.grade([EPISODE] * 4, [["x"]] * 4, [True] * 4)
    assert sampler.failures() == {"reward/timeout": 2.0, "reward/error": 4.0}
    assert sampler.failures() == {}


def test_a_demonstration_cut_at_the_end_of_an_inner_turn_is_not_finished(tokenizer):
    place = Place(0, 1, 0, 1, 0, 1, 0, 1)
    for limit, finished in ((len("left") + 1, False), (None, True)):
        chat = ChatTemplate(tokenizer, limit)
        sampler = Sampler(None, chat, None, place, 1, PhaseTimers(60.0), 1, True, (1,), 10, 10)
        found = sampler.demonstration(EPISODE)
        assert found.sequence.tokens[-1] == chat.eos_token_id
        assert found.finished == finished
