"""mu, the meta-gradient, losses and gradient norms are the same under every parallel layout."""

from __future__ import annotations

from dataclasses import replace

import pytest

from nemo_amft.algorithms.controllers.amft import MetaGradientConfig
from tests.lockstep.world import run_lockstep
from tests.parallel import meta_steps
from tests.parallel.meta_steps import Case


@pytest.fixture(scope="module")
def one_process(folders):
    """The reference: metrics of one process, by (tied, case on one rank)."""
    cache: dict = {}

    def get(tied: bool, case: Case):
        single = replace(case, tensor=1, pipeline=1, context=1, virtual=None, sequence_parallel=False)
        single = replace(single, packing=False, micro_batch_tokens=None)
        if (tied, single) not in cache:
            cache[tied, single] = run_lockstep(1, meta_steps.run, folders[tied], single)[0]
        return cache[tied, single]

    return get


LAYOUTS = {
    "dp2": (2, Case()),
    "dp2_no_distributed_optimizer": (2, Case(distributed_optimizer=False)),
    "dp2_overlap": (2, Case(overlap=True)),
    "tp2": (2, Case(tensor=2)),
    "tp2_sp": (2, Case(tensor=2, sequence_parallel=True)),
    "tp2_no_distributed_optimizer": (2, Case(tensor=2, distributed_optimizer=False)),
    "pp2": (2, Case(pipeline=2)),
    "pp2_no_distributed_optimizer": (2, Case(pipeline=2, distributed_optimizer=False)),
    "pp2_interleaved": (2, Case(pipeline=2, virtual=2)),
    "tp2_pp2": (4, Case(tensor=2, pipeline=2)),
    "tp2_pp2_no_distributed_optimizer": (4, Case(tensor=2, pipeline=2, distributed_optimizer=False)),
    "tp2_sp_pp2": (4, Case(tensor=2, pipeline=2, sequence_parallel=True)),
    "tp2_dp2": (4, Case(tensor=2)),
    "tp2_dp2_no_distributed_optimizer": (4, Case(tensor=2, distributed_optimizer=False)),
    "tp2_sp_dp2": (4, Case(tensor=2, sequence_parallel=True)),
    "pp2_dp2": (4, Case(pipeline=2)),
    "packed": (1, Case()),
    "budget_dp2": (2, Case(micro_batch_tokens=30)),
    "budget_tp2_sp": (2, Case(tensor=2, sequence_parallel=True, micro_batch_tokens=30)),
    "budget_pp2_interleaved": (2, Case(pipeline=2, virtual=2, micro_batch_tokens=30)),
    "padded_dp2": (2, Case(packing=False)),
    "padded_budget": (1, Case(packing=False, micro_batch_tokens=30)),
    "padded_tp2_sp": (2, Case(packing=False, tensor=2, sequence_parallel=True)),
    "padded_pp2": (2, Case(packing=False, pipeline=2)),
    "padded_pp2_interleaved": (2, Case(packing=False, pipeline=2, virtual=2)),
    "cp2": (2, Case(context=2)),
    "cp2_tp2_sp": (4, Case(context=2, tensor=2, sequence_parallel=True, micro_batch_tokens=40)),
    "cp2_pp2": (4, Case(context=2, pipeline=2)),
    "cp2_dp2": (4, Case(context=2)),
    "pp2_dp2_no_distributed_optimizer": (4, Case(pipeline=2, distributed_optimizer=False)),
}


def assert_same(found: list[dict], expected: list[dict], tolerance: float = 1e-5) -> float:
    """Every metric of every step, relative; absolute below 0.01, where a metric is a difference of larger numbers.

    Returns the largest difference.
    """
    worst = 0.0
    for step, (a, b) in enumerate(zip(found, expected, strict=True)):
        assert set(a) == set(b)
        off = {k: abs(a[k] - b[k]) / max(abs(b[k]), 1e-2) for k in b if not k.startswith("padding/")}
        assert max(off.values()) <= tolerance, f"step {step}: { ({k: (a[k], b[k]) for k in off if off[k] > tolerance}) }"
        worst = max(worst, *off.values())
    return worst


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("layout", list(LAYOUTS))
def test_mu_is_the_same_under_every_layout(folders, one_process, layout, tied):
    ranks, case = LAYOUTS[layout]
    results = run_lockstep(ranks, meta_steps.run, folders[tied], case)
    assert all(result == results[0] for result in results[1:]), "ranks disagree with one another"
    worst = assert_same(results[0], one_process(tied, case))
    print(f"{layout:<36}{'tied' if tied else 'untied':<8}largest difference from one process {worst:.1e}")
    assert len({step["mu"] for step in results[0]}) == 3  # it moved, so the comparison means something


@pytest.mark.parametrize(("layout", "tied"), [("tp2", False), ("tp2_no_distributed_optimizer", False), ("pp2", True)])
def test_counting_duplicates_would_be_noticed(folders, one_process, layout, tied):
    """Counting norms and biases once a tensor-parallel rank, or tied embeddings twice, fails the comparison above."""
    ranks, case = LAYOUTS[layout]
    found = run_lockstep(ranks, meta_steps.run, folders[tied], replace(case, count_duplicates=True))[0]
    with pytest.raises(AssertionError, match="meta/") as mistake:
        assert_same(found, one_process(tied, case))
    print(f"{layout}: counting duplicates gives {mistake.value}")


@pytest.mark.parametrize("layout", ["tp2", "pp2_dp2"])
def test_adam_preconditioner_and_trace_are_the_same_under_every_layout(folders, one_process, layout):
    ranks, case = LAYOUTS[layout]
    case = replace(case, meta=MetaGradientConfig(scale="raw", preconditioner="adam", trace_decay=0.9, val_samples=2))
    assert_same(run_lockstep(ranks, meta_steps.run, folders[False], case)[0], one_process(False, case))


@pytest.mark.parametrize(
    ("ranks", "case", "share"), [(1, Case(), 1), (2, Case(), 2), (2, Case(distributed_optimizer=False), 1)]
)
def test_one_shard_is_kept_in_fp32_for_one_step(folders, ranks, case, share):
    for found in run_lockstep(ranks, meta_steps.kept_bytes, folders[False], case):
        assert found["bytes"] == 4 * found["shard"]
        assert found["shard"] == pytest.approx(found["model"] / share, rel=0.1)
        assert found["dtypes"] == ["torch.float32"]
        assert not found["left"]


@pytest.mark.parametrize("reward", [0.0, 1.0], ids=["none_correct", "all_correct"])
@pytest.mark.parametrize("scale", ["raw", "cosine", "lr_free"])
def test_equal_rewards_give_a_meta_gradient_of_zero(folders, scale, reward):
    case = Case(meta=MetaGradientConfig(scale=scale, val_samples=2))
    assert run_lockstep(1, meta_steps.meta_gradient_of_equal_rewards, folders[False], case, reward) == [(0.0, 0.0)]


def test_a_step_without_demonstrations_is_an_rl_step(folders):
    for found in run_lockstep(2, meta_steps.without_demonstrations, folders[False], Case(tensor=2)):
        assert "loss/sft" not in found
        assert found["mu"] == 0.5  # neither term had anything to say
        assert "loss/rl" in found
        assert found["grad_norm/total"] > 0.0
        assert not found["kept"]  # there is no difference to keep


def test_an_entropy_bonus_changes_the_gradient(folders):
    """Entropies carry gradients only for losses that say so; this one does."""
    plain, bonus = (run_lockstep(1, meta_steps.rl_gradient_norm, folders[False], Case(), coef)[0] for coef in (0.0, 0.5))
    assert abs(bonus - plain) > 1e-3 * plain


def test_losses_do_not_depend_on_the_micro_batch_size(folders, one_process):
    whole = run_lockstep(1, meta_steps.run, folders[False], Case(micro_batch_size=64))[0]
    assert_same(run_lockstep(1, meta_steps.run, folders[False], Case(micro_batch_size=1))[0], whole)
