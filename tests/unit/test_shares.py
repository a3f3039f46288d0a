"""How requests are shared among engines."""

from nemo_amft.rollout.shares import shares
from nemo_amft.types import Request


def _requests(*lengths: int, samples: int = 1) -> list[Request]:
    return [Request((i,) * length) for i, length in enumerate(lengths) for _ in range(samples)]


def test_shares_are_contiguous_and_complete():
    requests = _requests(3, 9, 1, 40, 2, 2, 7, samples=3)
    for engines in range(1, 30):
        found = shares(requests, engines, max_new_tokens=5)
        assert len(found) == engines
        assert [i for share in found for i in share] == list(range(len(requests)))


def test_samples_of_one_prompt_stay_on_one_engine():
    assert shares(_requests(4, 4, 4, 4, samples=8), 2, max_new_tokens=10) == [range(16), range(16, 32)]
    assert shares(_requests(4, 4, 4, samples=4), 2, max_new_tokens=10) in ([range(4), range(4, 12)], [range(8), range(8, 12)])


def test_one_prompt_alone_is_spread_over_all_engines():
    assert [len(share) for share in shares(_requests(4, samples=64), 8, max_new_tokens=10)] == [8] * 8


def test_long_prompts_count_for_more():
    first, second = shares(_requests(100, *[10] * 10), 2, max_new_tokens=1)
    assert (len(first), len(second)) == (1, 10)


def test_nothing_to_share():
    assert shares([], 3, max_new_tokens=5) == [range(0, 0)] * 3
