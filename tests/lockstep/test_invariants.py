"""Twelve invariants of whole worlds hold under every layout, and seeded mistakes break them."""

from __future__ import annotations

import pytest

from tests.lockstep import invariants, mistakes
from tests.lockstep.examination import examine, global_batch, write_ids
from tests.lockstep.invariants import Examined, faults
from tests.lockstep.layouts import LAYOUTS
from tests.lockstep.world import run_lockstep
from tests.parallel.ranks import RanksFailed


@pytest.fixture
def examined(tmp_path):
    """Examines the world of a layout."""

    def make(name: str) -> Examined:
        layout, batch = LAYOUTS[name], global_batch()
        tensors = write_ids(layout, tmp_path)
        reports = run_lockstep(layout.ranks, examine, layout, str(tmp_path), tensors, batch)
        return Examined(layout, tensors, batch, reports)

    return make


@pytest.mark.parametrize("name", list(LAYOUTS))
def test_every_invariant_holds_over_the_whole_world(examined, name):
    assert dict(faults(examined(name))) == {}


COUNTED = {"inner_product_counts_each_element_once", "inner_product_is_exact_on_every_rank"}
EVERYTHING = "tp2_sp_pp2_cp2_dp2_tied"


@pytest.mark.parametrize(
    ("mistake", "name", "broken"),
    [
        (mistakes.duplicates_counted, EVERYTHING, COUNTED),
        (
            mistakes.product_over_model_ranks_alone,
            EVERYTHING,
            COUNTED | {"gradient_norm_counts_each_element_once"},
        ),
        (mistakes.norms_unmarked, EVERYTHING, {"gradients_are_summed_over_the_ranks_that_have_a_part"}),
        (
            mistakes.sequence_dealt_twice,
            EVERYTHING,
            {"each_trained_token_is_computed_once", "sums_and_counts_are_the_global_batchs"},
        ),
        (mistakes.positions_of_another_context_rank, EVERYTHING, {"each_trained_token_is_computed_once"}),
        (mistakes.every_context_rank_speaks, EVERYTHING, {"sums_and_counts_are_the_global_batchs"}),
        (mistakes.stale_shard_in_a_sync, EVERYTHING, {"a_sync_brings_every_tensor_once"}),
        (mistakes.every_replica_writes, EVERYTHING, {"checkpoint_pieces_tile_every_tensor"}),
        (mistakes.main_weights_saved_from_wrong_places, "tp2_pp4_vpp2_dp2_tied", {"saved_main_weights_are_the_models"}),
    ],
)
def test_a_seeded_mistake_breaks_what_it_should_and_nothing_else(examined, mistake, name, broken):
    assert broken <= {invariant.__name__ for invariant in invariants.INVARIANTS}
    with mistake():
        found = dict(faults(examined(name)))
    assert set(found) == broken, found


def test_layers_saved_by_a_wrong_number_are_noticed_by_megatron(examined):
    with (
        mistakes.layers_saved_by_local_number(),
        pytest.raises(RanksFailed, match=r"Invalid access pattern .*key='decoder.layers"),
    ):
        examined(EVERYTHING)
