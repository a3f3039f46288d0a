"""Checkpoints: a resumed run is the uninterrupted one, on the same layout to the last bit; damage is seen."""

from __future__ import annotations

import json
import re
import shutil
import zlib
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from megatron.core.optimizer.cpu_offloading import HybridDeviceOptimizer

from nemo_amft.config.schema import OptimConfig
from nemo_amft.models import checkpoints, offloading
from nemo_amft.observe.files import FULL
from nemo_amft.types import UserError
from tests.parallel import few_weights, meta_steps
from tests.parallel.meta_steps import Case
from tests.parallel.ranks import RanksFailed, run_ranks
from tests.parallel.test_layouts import assert_same

CASES = {
    "dp2": (2, False, Case()),
    "tp2_sp": (2, False, Case(tensor=2, sequence_parallel=True)),
    "pp2": (2, False, Case(pipeline=2)),
    "dp2_no_distributed_optimizer": (2, False, Case(distributed_optimizer=False)),
    # Gradient buffers of several buckets, padded at their ends.
    "pp2_vpp2_tied": (2, True, Case(pipeline=2, virtual=2)),
    "pp2_dp3_tied": (6, True, Case(pipeline=2)),
    "dp2_buckets": (2, False, Case(overlap=True, bucket_size=5000)),
}
"""Ranks, whether embeddings are tied, layout."""


@pytest.mark.parametrize("name", list(CASES))
def test_resumed_in_fresh_processes_equals_uninterrupted_bit_for_bit(folders, tmp_path, name):
    ranks, tied, case = CASES[name]
    uninterrupted = run_ranks(ranks, meta_steps.save_after_two, folders[tied], case, str(tmp_path))
    resumed = run_ranks(ranks, meta_steps.resume_after_two, folders[tied], case, str(tmp_path))
    assert resumed == uninterrupted
    assert "meta/g_mu" in resumed[0][0], "the kept difference did not survive"


def before_formats(folder: Path) -> None:
    """Make the checkpoint in `folder` one that was written before checkpoints had a format."""
    (checkpoint,) = folder.iterdir()
    file, manifest = checkpoint / "trainer.json", checkpoint / "manifest.json"
    trainer, sealed = json.loads(file.read_text()), json.loads(manifest.read_text())
    del trainer["format"]
    file.write_text(json.dumps(trainer))
    sealed[file.name] = [file.stat().st_size, zlib.crc32(file.read_bytes())]
    manifest.write_text(json.dumps(sealed))


@pytest.mark.parametrize("name", ["pp2", "tp2_sp"])
def test_an_old_checkpoint_without_padded_buckets_is_loaded(folders, tmp_path, name):
    ranks, tied, case = CASES[name]
    uninterrupted = run_ranks(ranks, meta_steps.save_after_two_misplaced, folders[tied], case, str(tmp_path))
    before_formats(tmp_path)
    assert run_ranks(ranks, meta_steps.resume_after_two, folders[tied], case, str(tmp_path)) == uninterrupted


@pytest.mark.parametrize("read", [Case(pipeline=2, virtual=2), Case(tensor=2)], ids=["as_written", "tp2"])
def test_an_old_checkpoint_with_misplaced_state_is_refused_on_any_layout(folders, tmp_path, read):
    ranks, tied, written = CASES["pp2_vpp2_tied"]
    run_ranks(ranks, meta_steps.save_after_two_misplaced, folders[tied], written, str(tmp_path))
    before_formats(tmp_path)
    # On every rank, so that none goes on and waits for the others.
    with pytest.raises(RanksFailed, match=r"2 of 2 ranks failed(.|\n)*found the policy's optimiser state misplaced"):
        run_ranks(2, meta_steps.resume_after_two, folders[tied], read, str(tmp_path))


def test_a_shard_of_padding_alone_is_saved_and_loaded(tmp_path):
    """48 weights on two ranks: the second has none of them."""
    uninterrupted = run_ranks(2, few_weights.save_after_one, str(tmp_path))
    assert run_ranks(2, few_weights.resume_after_one, str(tmp_path)) == uninterrupted


@pytest.mark.parametrize("distributed", [True, False])
def test_a_resumed_optimiser_has_the_numbers_of_the_configuration(tmp_path, distributed):
    """Adam's second step, from the moments of a first with other numbers, by its equations, decay and clipping included."""
    before = OptimConfig(lr=1e-3, use_distributed_optimizer=distributed)
    now = replace(before, lr=3e-3, betas=(0.8, 0.7), eps=0.05, weight_decay=0.5, clip_grad=0.5)
    run_ranks(1, few_weights.save_after_one, str(tmp_path), before)
    ((said, groups, weights),) = run_ranks(1, few_weights.resume_otherwise, str(tmp_path), now)
    numbers = {"lr": 3e-3, "betas": (0.8, 0.7), "eps": 0.05, "weight_decay": 0.5}
    assert numbers in groups
    assert all(group == numbers | {"weight_decay": group["weight_decay"]} for group in groups)
    assert "betas: (0.9, 0.95) -> (0.8, 0.7), eps: 1e-08 -> 0.05" in said[0]

    first, second = 0.5 * 1.0 / (0.5 * 48**0.5), -0.25 * 0.5 / (0.25 * 48**0.5)  # clipped to norms of 1 and 0.5
    m = 0.8 * 0.1 * first + 0.2 * second
    v = 0.7 * 0.05 * first**2 + 0.3 * second**2
    update = 3e-3 * (m / (1 - 0.8**2)) / ((v / (1 - 0.7**2)) ** 0.5 + 0.05)
    expected = [(w * (1 - 1e-3 * 0.1) - 1e-3) * (1 - 3e-3 * 0.5) - update for w in range(48)]
    assert weights == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_a_resumed_offloaded_optimiser_has_the_numbers_of_the_configuration(tmp_path):
    """In the groups of the parts, which hold the copies in host memory, too; see the test of offloading below."""
    before = OptimConfig(lr=1e-3, optimizer_cpu_offload=True)
    run_ranks(1, few_weights.save_offloaded, str(tmp_path), before)
    ((groups, parts),) = run_ranks(1, few_weights.resume_offloaded, str(tmp_path), replace(before, betas=(0.8, 0.7), eps=0.05))
    assert groups == parts == [((0.8, 0.7), 0.05)]


@pytest.mark.parametrize(
    ("rank", "room", "where"),
    [
        (0, 50, "File too large, on rank 0"),  # trainer.json
        (0, 1600, rf"{FULL}(, on rank 0)?"),  # torch's archive of 1.8 KB, whose writer knows a wrong position alone
        (1, 1600, f"(File too large|{FULL})"),  # a rank's share of the weights, of which rank 0 hears from Megatron
    ],
    ids=["json", "archive", "shards"],
)
def test_a_full_disk_is_named_and_leaves_the_checkpoint_before(tmp_path, rank, room, where):
    path = tmp_path / "step_00000002"
    said = run_ranks(rank + 1, few_weights.save_onto_a_full_disk, str(tmp_path), rank, room)
    assert re.search(rf"{path} could not be written: {where} \([\d.]+ \w+ of [\d.]+ \w+ free in {tmp_path}\)", said[0]), said
    assert [found.name for found in tmp_path.iterdir()] == ["step_00000001"]
    assert checkpoints.damage(tmp_path / "step_00000001") is None


@pytest.mark.parametrize("distributed_optimizer", [True, False])
def test_models_that_have_made_no_step_are_saved_and_loaded(folders, tmp_path, distributed_optimizer):
    case = Case(distributed_optimizer=distributed_optimizer)
    saved = run_ranks(2, meta_steps.save_at_once, folders[False], case, str(tmp_path))
    assert run_ranks(2, meta_steps.resume_at_once, folders[False], case, str(tmp_path)) == saved


@pytest.mark.parametrize("asked", [True, False])
def test_the_other_kind_of_optimiser_is_refused_by_its_key(folders, tmp_path, asked):
    run_ranks(1, meta_steps.save_at_once, folders[False], Case(distributed_optimizer=not asked), str(tmp_path))
    message = f"UserError: optim.use_distributed_optimizer: found {str(asked).lower()}, expected {str(not asked).lower()} as in"
    with pytest.raises(RanksFailed, match=message):
        run_ranks(1, meta_steps.resume_at_once, folders[False], Case(distributed_optimizer=asked), str(tmp_path))


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("tp2_sp", Case()),
        ("dp2", Case(tensor=2)),
        ("pp2", Case()),
        ("pp2", Case(pipeline=2, virtual=2)),
        ("pp2_vpp2_tied", Case(overlap=True, bucket_size=5000)),
    ],
)
def test_another_layout_can_read_a_checkpoint(folders, tmp_path, written, read):
    """Without the kept difference, which belongs to the layout: so the entropy term alone moves mu in the first step."""
    ranks, tied, case = CASES[written]
    expected = run_ranks(ranks, meta_steps.save_after_two, folders[tied], case, str(tmp_path))[0][0]
    found = run_ranks(2, meta_steps.resume_after_two, folders[tied], read, str(tmp_path))[0][0]
    same = [k for k in found if k.startswith(("loss/", "entropy/", "grad_norm/sft", "grad_norm/rl"))]
    assert_same([{k: found[k] for k in same}], [{k: expected[k] for k in same}])
    assert found["mu/missed"] == 1.0


def test_replicas_share_the_writing_and_the_checking(folders, tmp_path):
    (tmp_path / ".writing_step_00000007" / "policy").mkdir(parents=True)  # of a save that was killed
    saved = run_ranks(2, meta_steps.save_at_once, folders[False], Case(), str(tmp_path))
    (good,) = tmp_path.iterdir()
    written = {rank: sum(p.stat().st_size for p in (good / "policy").glob(f"__{rank}_*.distcp")) for rank in range(2)}
    assert min(written.values()) > 0.4 * sum(written.values()), written
    bad = good.with_name("step_00000009")
    shutil.copytree(good, bad)
    # Whichever rank looks at the damaged file, both take the other checkpoint.
    names = list(json.loads((bad / "manifest.json").read_text()))
    for name in [next(name for name in names[rank::2] if name.endswith(".distcp")) for rank in range(2)]:
        (bad / name).write_bytes((bad / name).read_bytes()[:-1])
        assert run_ranks(2, meta_steps.resume_at_once, folders[False], Case(), str(tmp_path)) == saved
        shutil.copy(good / name, bad / name)


def test_an_offloaded_optimiser_is_loaded_and_takes_over_weights(folders, tmp_path):
    """On a CPU nothing is offloaded and no step can be made (tests/gpu does), but state and main shards are the same."""
    case = Case(offload=True, precision="bf16")
    run_ranks(2, meta_steps.save_offloaded, folders[False], case, str(tmp_path))
    for moments, differences in run_ranks(2, meta_steps.load_offloaded, folders[False], case, str(tmp_path)):
        assert moments == {0.25}
        assert differences == {"as loaded": 0.0, "critic, from the policy": 0.0}


def test_copies_in_host_memory_follow_the_parameters():
    parameter, copy = torch.ones(3), torch.zeros(3)
    offloading.copy_to_host(SimpleNamespace(gpu_params_map_cpu_copy={parameter: copy}))
    assert copy.tolist() == [1.0] * 3


def fused_steps_after_loading() -> list[int]:
    """Steps that fused Adam, which counts them in its groups, would have made after a checkpoint of step 3 and two more."""
    weight = torch.nn.Parameter(torch.zeros(2))
    adam = {"cpu_optimizer_cls": torch.optim.Adam, "gpu_optimizer_cls": torch.optim.Adam}
    hybrid = HybridDeviceOptimizer([{"params": [weight]}], **adam)
    state = hybrid.state_dict()
    state["param_groups"][0]["step"] = 3
    hybrid.load_state_dict(state)
    offloading.leave_steps_to_parts(hybrid)
    (part,) = hybrid.sub_optimizers
    counted = []
    for _ in range(2):
        hybrid._sync_hdo_param_groups_to_sub_optimizers()  # the start of a step
        part.param_groups[0]["step"] += 1
        counted.append(part.param_groups[0]["step"])
    return counted


def test_a_partly_offloaded_optimiser_goes_on_counting_its_steps():
    assert run_ranks(1, fused_steps_after_loading, process_group=False) == [[4, 5]]


def test_a_damaged_newest_checkpoint_is_passed_over_and_named(tmp_path, folders):
    run_ranks(1, meta_steps.save_after_two, folders[False], replace(Case(), advantage="grpo"), str(tmp_path / "checkpoints"))
    (good,) = (tmp_path / "checkpoints").glob("step_*")
    assert checkpoints.damage(good) is None
    bad = good.with_name("step_00000009")
    shutil.copytree(good, bad)
    victim = max((p for p in (bad / "policy").iterdir() if p.is_file()), key=lambda p: p.stat().st_size)
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 1
    victim.write_bytes(content)
    assert "differs from what was written" in checkpoints.damage(bad)
    assert checkpoints.find(str(tmp_path)) == good
    victim.write_bytes(content[:-1])
    assert "bytes, expected" in checkpoints.damage(bad)
    victim.unlink()
    assert "is missing" in checkpoints.damage(bad)


def test_a_folder_without_checkpoints_is_refused_in_one_line(tmp_path: Path):
    with pytest.raises(UserError, match="found no intact checkpoint, expected a run directory"):
        checkpoints.find(str(tmp_path))


def test_a_checkpoint_of_a_later_format_is_refused(tmp_path: Path):
    (tmp_path / "trainer.json").write_text(json.dumps({"format": checkpoints.FORMAT + 1}))
    with pytest.raises(UserError, match=f"found format {checkpoints.FORMAT + 1}, expected at most {checkpoints.FORMAT}"):
        checkpoints.Checkpoints(tmp_path, 1, SimpleNamespace(rank=0)).load(tmp_path, {})
