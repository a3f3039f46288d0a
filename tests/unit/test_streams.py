import json
from collections import Counter

import pytest

from nemo_amft.data.streams import ExampleStream, MixedStream, Stream, some_of
from nemo_amft.types import Example, UserError


def examples(n: int, source: str = "") -> list[Example]:
    return [Example(f"{source}{i}", ({"role": "user", "content": f"{source}{i}"},), "0", source=source) for i in range(n)]


EXAMPLES = examples(10)
MIXED = [*examples(10, "a"), *examples(3, "b")]


def ids(stream: Stream, n: int) -> list[str]:
    return [example.id for example in stream.take(n)]


def mixture(seed: int = 1, **weights: float) -> MixedStream:
    return MixedStream(MIXED, weights or {"a": 1.0, "b": 2.0}, seed, "prompts")


def test_each_epoch_is_a_permutation_and_differs_from_the_one_before():
    stream = ExampleStream(EXAMPLES, seed=1, name="prompts")
    epochs = [ids(stream, 10) for _ in range(3)]
    assert all(sorted(epoch) == sorted(e.id for e in EXAMPLES) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


@pytest.mark.parametrize("sizes", [(3,) * 8, (7, 10, 7), (24,), (0, 23, 1)])
def test_the_order_does_not_depend_on_how_it_is_cut_into_batches(sizes):
    stream = ExampleStream(EXAMPLES, seed=1, name="prompts")
    assert [i for size in sizes for i in ids(stream, size)] == ids(ExampleStream(EXAMPLES, seed=1, name="prompts"), 24)


@pytest.mark.parametrize("taken", [0, 3, 10, 13, 20, 107])
def test_a_restored_stream_continues_exactly(taken):
    stream = ExampleStream(EXAMPLES, seed=1, name="prompts")
    stream.take(taken)
    assert stream.state_dict() == {"position": taken}
    restored = ExampleStream(EXAMPLES, seed=1, name="prompts")
    restored.take(4)  # whatever it did before must not matter
    restored.load_state_dict(stream.state_dict())
    assert ids(restored, 25) == ids(stream, 25)
    assert (restored.position, restored.epoch) == (taken + 25, (taken + 25) / 10)


def test_streams_of_another_seed_or_name_have_another_order():
    orders = {tuple(ids(ExampleStream(EXAMPLES, seed, name), 10)) for seed in (1, 2) for name in ("prompts", "demonstrations")}
    assert len(orders) == 4


def test_the_order_is_the_same_in_every_release():
    assert ids(ExampleStream(EXAMPLES, seed=1, name="prompts"), 10) == list("9416570283")


def test_a_stream_of_nothing_is_refused():
    with pytest.raises(UserError, match=r"^data: found no examples for prompts, expected at least one$"):
        ExampleStream([], seed=1, name="prompts")


@pytest.mark.parametrize("weights", [{"a": 1.0, "b": 2.0}, {"a": 0.3, "b": 0.1}, {"a": 1.0, "b": 50.0}])
def test_each_source_of_a_mixture_has_the_share_of_its_weight_in_every_beginning(weights):
    stream, taken = mixture(**weights), Counter()
    for n in range(1, 121):
        taken[stream.take(1)[0].source] += 1
        for source, weight in weights.items():
            assert abs(taken[source] - n * weight / sum(weights.values())) < 1


def test_a_source_is_gone_through_whole_before_any_of_it_is_repeated():
    drawn = [example.id for example in mixture().take(15) if example.source == "b"]
    assert len(drawn) == 10
    assert all(sorted(drawn[i : i + 3]) == ["b0", "b1", "b2"] for i in (0, 3, 6))


@pytest.mark.parametrize("taken", [0, 1, 7, 40])
def test_a_restored_mixture_continues_exactly(taken):
    stream, restored = mixture(), mixture()
    first = [i for size in (taken // 2, taken - taken // 2) for i in ids(stream, size)]
    restored.take(5)  # whatever it did before must not matter
    restored.load_state_dict(json.loads(json.dumps(stream.state_dict())))
    rest = ids(stream, 25)
    assert ids(restored, 25) == rest
    assert ids(mixture(), taken + 25) == first + rest
    assert ids(mixture(seed=2), taken + 25) != first + rest


def test_a_mixture_restored_with_other_weights_has_their_shares_from_there_on():
    """Nothing is made up for: by shares of all taken since the start, the next eight would be six of b."""
    before, stream = mixture(a=1.0, b=1.0), mixture(a=3.0, b=1.0)
    before.take(20)
    stream.load_state_dict(json.loads(json.dumps(before.state_dict())))
    assert Counter(example.source for example in stream.take(8)) == {"a": 6, "b": 2}
    again = mixture(a=3.0, b=1.0)
    again.load_state_dict(json.loads(json.dumps(stream.state_dict())))
    assert ids(again, 12) == ids(stream, 12)


def test_a_checkpoint_s_streams_keep_their_sources():
    one, many, other = ExampleStream(EXAMPLES, 1, "prompts"), mixture(), mixture(a=1.0, b=3.0)
    with pytest.raises(
        UserError, match=r"^data: found no weights for the prompts, expected .* a with weight 1, b with weight 2$"
    ):
        one.load_state_dict(many.state_dict())
    with pytest.raises(
        UserError, match=r"found a with weight 1, b with weight 3 for the prompts, expected .* a with weight 1$"
    ):
        other.load_state_dict({"weights": {"a": 1.0}, "positions": {"a": 1}})
    with pytest.raises(UserError, match=r"expected the checkpoint's, no weights$"):
        many.load_state_dict(one.state_dict())


def test_some_of_a_mixture_stand_for_all_of_it_and_some_of_one_source_are_its_first():
    assert Counter(example.source for example in some_of(MIXED, {"a": 1.0, "b": 2.0}, 9)) == {"a": 3, "b": 6}
    assert some_of(EXAMPLES, {}, 4) == EXAMPLES[:4]
