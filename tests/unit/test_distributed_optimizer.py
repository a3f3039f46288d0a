"""Where a distributed optimiser's state is saved from."""

from nemo_amft.parallel.distributed_optimizer import without_padding


def test_places_move_up_by_the_padding_of_the_buckets_before_them():
    # Buckets of 100, 64 and 44 elements, padded to multiples of 128; b starts at a multiple of 64.
    places = {"a": (0, 60, 0), "b": (64, 100, 0), "c": (128, 192, 1), "d": (256, 300, 2)}
    found = without_padding(places, [(128, 100), (128, 64), (128, 44)])
    assert list(found.items()) == [("a", (0, 60, 0)), ("b", (64, 100, 0)), ("c", (100, 164, 1)), ("d", (164, 208, 2))]
