"""Seeds of samples."""

from itertools import product

import numpy
import torch

from nemo_amft.rollout.seeds import sample_seed
from nemo_amft.rollout.vllm_process import seeded


def test_a_seed_is_the_same_in_every_process_and_release():
    """Pinned values: a change would make every recorded run irreproducible."""
    assert sample_seed(1, "train", 0, 0, 0) == 1779950444483561817
    assert sample_seed(7, "validation", 20, 3, 1) == 1417500842709870273


def test_every_argument_changes_the_seed_and_none_runs_into_its_neighbour():
    keys = [*product((0, 1, 11), ("train", "meta"), (0, 1, 11), (0, 1, 11), (0, 1, 11))]
    assert len({sample_seed(*key) for key in keys}) == len(keys)


def test_seeds_fit_a_signed_64_bit_integer():
    seeds = [sample_seed(0, "train", 0, 0, i) for i in range(1000)]
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert max(seeds) > 2**62


def test_an_engine_draws_by_its_seed_alone_and_leaves_trainings_generators_as_they_were():
    def draw():
        return torch.rand(3).tolist(), numpy.random.randint(2**62, size=3).tolist()  # vLLM's two sources

    with seeded(2**63 + 5):
        first = draw()
    draw()  # training goes on
    with seeded(2**63 + 5):
        assert draw() == first
    with seeded(2**63 + 6):
        assert draw() != first
    torch.manual_seed(1)
    numpy.random.seed(1)
    expected = draw()
    torch.manual_seed(1)
    numpy.random.seed(1)
    with seeded(3):
        draw()
    assert draw() == expected
