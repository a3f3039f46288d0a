import pytest

from nemo_amft.data.streams import ExampleStream
from nemo_amft.types import Example, UserError

EXAMPLES = [Example(str(index), ({"role": "user", "content": str(index)},), "0") for index in range(10)]


def ids(stream: ExampleStream, n: int) -> list[str]:
    return [example.id for example in stream.take(n)]


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
