"""A bad gradient is not a dead policy, and a dead policy is noticed by what only it shows."""

import math

import pytest

from nemo_amft.algorithms.sampling import refuse_no_numbers
from nemo_amft.algorithms.vital_signs import DeadError, check_growth, check_step
from nemo_amft.types import Completion

SOUND = {"loss/sft": 2.0, "entropy/sft": 1.0, "entropy/rl": 0.0, "grad_norm/total": math.nan, "loss/rl": math.nan}
"""What a step measures whose gradient overflowed in a sound policy."""


@pytest.mark.parametrize("changed", [{}, {"entropy/rl": math.log(32)}, {"loss/sft": 1e4}])
def test_a_bad_gradient_and_whatever_a_policy_has_learned_wrong_are_no_death(changed):
    """A policy that is sure of everything wrong has entropies near 0 and a large loss; one that knows nothing has ln V."""
    check_step(SOUND | changed, vocabulary=32)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"loss/sft": math.nan}, "log-probs are no numbers .loss/sft is nan"),
        ({"loss/sft": math.inf}, "log-probs are no numbers .loss/sft is inf"),
        ({"entropy/rl": math.nan}, "log-probs are no numbers .entropy/rl is nan"),
        ({"entropy/sft": 3.6}, "entropy/sft is 3.6, expected from 0 to ln 32 = 3.47"),
        ({"entropy/rl": -0.5}, "entropy/rl is -0.5, expected from 0"),
    ],
)
def test_numbers_that_no_distribution_gives_are(changed, said):
    with pytest.raises(DeadError, match=said):
        check_step(SOUND | changed, vocabulary=32)


def test_weights_may_grow_and_not_tenfold():
    before = {"policy": 10.0}
    check_growth({"policy": 90.0, "critic": 1e9}, before)  # the critic is new
    check_growth({"policy": 1.0}, before)
    with pytest.raises(DeadError, match="weights of the policy are 11 times as large as at the last good checkpoint"):
        check_growth({"policy": 110.0}, before)
    with pytest.raises(DeadError, match="weights of the policy are no numbers"):
        check_growth({"policy": math.nan}, {})


def test_an_engine_whose_logits_are_no_numbers_is_named():
    class Engine:
        pass

    fine, broken = Completion((1, 2), (-0.5, -1.0), True), Completion((31, 31), (-0.5, math.nan), False)
    refuse_no_numbers([fine, fine], Engine())
    with pytest.raises(DeadError, match="Engine: the log-probs of 1 of 2 responses are no numbers"):
        refuse_no_numbers([fine, broken], Engine())
