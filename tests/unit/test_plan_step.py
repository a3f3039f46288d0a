"""Traffic, times and search: bytes by hand, and what must hold of any estimate."""

from __future__ import annotations

import pytest

from nemo_amft.config.architecture import architecture_of
from nemo_amft.config.load import load
from nemo_amft.plan import plan
from nemo_amft.planning.communication import traffic
from nemo_amft.planning.engine import engine_memory
from nemo_amft.planning.flops import generation_flops, training_flops
from nemo_amft.planning.hardware import GPUS
from nemo_amft.planning.search import allowed, candidates
from nemo_amft.planning.timing import step_seconds
from nemo_amft.planning.workload import workload

A100 = GPUS["a100_80gb"]


def math(*overrides):
    return load(["--config-name", "amft_math", *overrides], check=False)


def grpo(*overrides):
    """Without critic and meta-update: two passes a step."""
    plain = ("method=amft_grpo", "controller.eta_mu=0", "model.micro_batch_tokens=null", "model.sequence_parallel=false")
    none = ("model.recompute_granularity=null", "model.recompute_method=null", "model.recompute_num_layers=null")
    return math(*plain, *none, *overrides)


def sent(config, fill=0.5):
    architecture = architecture_of(config.model)
    engine = engine_memory(config, architecture, A100)
    return {one.kind: one for one in traffic(config, architecture, workload(config, fill), engine)}


def seconds(config, fill=0.5):
    architecture = architecture_of(config.model)
    return step_seconds(config, architecture, A100, workload(config, fill), engine_memory(config, architecture, A100))


def test_flops_of_a_step_are_those_of_its_passes():
    config = grpo()
    architecture, work = architecture_of(config.model), workload(config, 0.5)
    assert (work.prompt, work.response, work.rollouts) == (512, 4096, 1024)
    # 1024 rollouts and 128 demonstrations, all of 4607 positions of which 4096 are trained.
    assert work.training_flops(architecture) == pytest.approx(1152 * training_flops(architecture, [4607], 4096))
    assert work.generation_flops(architecture) == pytest.approx(1024 * generation_flops(architecture, [512], [4096]))


def test_a_critic_adds_a_forward_and_a_training_pass_and_meta_updates_their_share():
    phases = {one.phase: one for one in workload(math(), 0.5).passes}
    assert set(phases) == {"value", "sft", "rl", "critic", "meta"}
    assert (phases["value"].backward, phases["critic"].backward, phases["value"].critic) == (False, True, True)
    assert phases["meta"].sequences == 64 * 4 / 20


def test_tensor_parallel_all_reduces_by_hand():
    one = sent(grpo("model.tensor_model_parallel_size=4"))["tensor parallel, all-reduces of activations"]
    positions = 1152 * 4607 / 16  # data-parallel size 16
    # Ring all-reduce: 2 x 3/4 of the tensor. Two a layer and direction, the embedding's, and that into the output layer.
    assert one.bytes == pytest.approx((4 * 28 + 2) * 2 * 3 / 4 * positions * 3584 * 2)
    assert one.wire == "node"


def test_gradients_are_reduced_in_fp32_and_parameters_gathered_in_bf16():
    found = sent(grpo("model.tensor_model_parallel_size=4"))
    elements = 1_904_057_344
    reduce, gather = (found[f"data parallel, {kind}"] for kind in ("reduce-scatter of gradients", "all-gather of parameters"))
    assert reduce.bytes == pytest.approx(elements * 4 * 15 / 16, rel=1e-6)
    assert gather.bytes == pytest.approx(elements * 2 * 15 / 16, rel=1e-6)
    assert reduce.wire == "network"
    whole = sent(grpo("model.tensor_model_parallel_size=4", "optim.use_distributed_optimizer=false"))
    assert whole["data parallel, all-reduce of gradients"].bytes == pytest.approx(2 * reduce.bytes, rel=1e-6)
    assert "data parallel, all-gather of parameters" not in whole


def test_a_weight_sync_brings_every_rank_what_it_lacks_of_the_model():
    found = sent(grpo("model.tensor_model_parallel_size=2", "model.pipeline_model_parallel_size=2"))
    tensor, stages = (found[f"weight sync, {kind}"].bytes for kind in ("all-gathers of shards", "broadcasts over stages"))
    assert tensor + stages == pytest.approx(7_615_616_512 * 2 * 3 / 4)


def test_a_pipeline_sends_hidden_states_once_each_way():
    one = sent(grpo("model.tensor_model_parallel_size=4", "model.pipeline_model_parallel_size=2"))
    states = 1152 * 4607 / 8 * 3584 * 2
    assert one["pipeline, activations and their gradients sent"].bytes == pytest.approx(2 * states)


def test_every_phase_of_an_estimate_moves_the_way_it_must():
    base = seconds(grpo("model.tensor_model_parallel_size=4"))
    full = ("model.recompute_granularity=full", "model.recompute_method=uniform", "model.recompute_num_layers=1")
    recomputed = seconds(grpo("model.tensor_model_parallel_size=4", *full))
    assert 4 / 3 < recomputed["rl"] / base["rl"] < 3 / 2  # a third more products, half as many collectives again
    assert recomputed["rollout"] == base["rollout"]
    assert seconds(grpo("model.tensor_model_parallel_size=4"), fill=1.0)["rl"] > 2 * base["rl"]
    longer = seconds(grpo("model.tensor_model_parallel_size=4", "rollout.max_new_tokens=4096"))
    assert longer["rollout"] < 0.6 * base["rollout"]  # decoding takes as many passes as the longest response
    assert sum(seconds(math()).values()) > sum(base.values())
    eager = seconds(grpo("model.tensor_model_parallel_size=4", "rollout.enforce_eager=true"))
    assert eager["rollout"] > base["rollout"]


def test_no_estimate_is_faster_than_the_hardware():
    config = math()
    architecture, work, found = architecture_of(config.model), workload(config, 0.5), seconds(config)
    assert sum(found[p.phase] for p in work.passes) > work.training_flops(architecture) / (64 * 312e12)
    engine = engine_memory(config, architecture, A100)
    assert found["rollout"] > 8192 * engine.weights / 2039e9


def test_search_proposes_layouts_that_fit_and_reads_back_its_own_overrides(capsys):
    config = math()
    architecture = architecture_of(config.model)
    found = allowed(candidates(config, architecture, A100, 0.5))
    times = [one.seconds for one in found]
    assert times == sorted(times)
    assert times[0] <= sum(seconds(config).values())
    assert all(one.footprint.fits and one.footprint.engine.full_sequences for one in found)
    best = math(*found[0].changes)
    assert sum(seconds(best).values()) == pytest.approx(times[0])
    assert plan(best) == 0
    capsys.readouterr()
    assert plan(config, search="") == 0
    assert f"for the first: {' '.join(found[0].changes)}" in capsys.readouterr().out


def test_search_keeps_to_the_job_and_to_what_divides():
    config = math("trainer.num_nodes=2", "trainer.devices=4")
    for one in candidates(config, architecture_of(config.model), GPUS["h200"], 0.5):
        model = one.config.model
        assert 4 % model.tensor_model_parallel_size == 0  # tensor-parallel ranks stay within a node
        assert 8 % (model.tensor_model_parallel_size * model.pipeline_model_parallel_size) == 0
        assert not model.sequence_parallel or model.tensor_model_parallel_size > 1
