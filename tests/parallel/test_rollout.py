"""Both rollout engines against transformers, against the policy's own log-probs, and against each other's layouts."""

from __future__ import annotations

import functools
import os
import random
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy
import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from tokenizers import Tokenizer, decoders, models
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast, Qwen2Config

from nemo_amft.config.schema import ModelConfig, OptimConfig, RolloutConfig
from nemo_amft.parallel import groups, platform
from nemo_amft.rollout.probe import probe
from nemo_amft.types import Completion, Request, SamplingParams, TokenSequence, UserError
from tests.parallel.ranks import RanksFailed, run_ranks

VOCAB_SIZE = 101
"""Ids of the tokenizer: no multiple of 2 or 128."""
ROWS = 150
"""Of embeddings and head. Those beyond the tokenizer's ids are as large as the others: they would be every third token."""
MAX_LENGTH = 40
NEW_TOKENS = 12
PROMPTS = [(5, 6, 7), (5, 6, 7), (50, 51, 52, 53, 54, 55, 56, 57, 58), (90,), (5, 6, 7), (11, 12, 13, 14, 15)]
REQUESTS = [Request(prompt, seed=1000 + i) for i, prompt in enumerate(PROMPTS)]
GREEDY = SamplingParams(NEW_TOKENS, temperature=0.0)
ROLLOUT = RolloutConfig(max_num_seqs=4, kv_cache_gb=0.03125, max_new_tokens=NEW_TOKENS)

# name: (engine, ranks, tensor-parallel size of training, tensor-parallel size of the engine, sequence parallel)
MEGATRON = {
    "megatron": ("megatron", 1, 1, 1, False),
    "megatron DP2": ("megatron", 2, 1, 1, False),
    "megatron TP2": ("megatron", 2, 2, 1, False),
    "megatron TP2 SP": ("megatron", 2, 2, 1, True),
}
VLLM = {
    "vllm 2 engines": ("vllm", 2, 2, 1, False),
    "vllm TP2": ("vllm", 2, 2, 2, False),
    "vllm tied embeddings": ("vllm", 2, 2, 1, False),
}


class Folders(dict):
    """Two tiny models that differ in their weights, by the name of the layout that uses them."""

    def __missing__(self, layout: str) -> tuple[Path, Path]:
        return self["tied" in layout]


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> Folders:
    found = Folders()
    for tied in (False, True):
        config = Qwen2Config(
            vocab_size=ROWS,
            hidden_size=128,  # heads of 32, the smallest that vLLM has on a CPU
            intermediate_size=96,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=128,
            initializer_range=0.2,
            tie_word_embeddings=tied,
        )
        pair = []
        for seed in (0, 1):
            torch.manual_seed(seed)
            pair.append(tmp_path_factory.mktemp(f"model{seed}_{tied}"))
            AutoModelForCausalLM.from_config(config).save_pretrained(pair[-1])
        found[tied] = tuple(pair)
    return found


@pytest.fixture(scope="module")
def run(folders):
    """Everything that one layout's ranks found, drawn once a module: starting vLLM takes seconds."""

    @functools.cache
    def outcome(name: str) -> list[dict] | RanksFailed:
        engine, ranks, *layout = {**MEGATRON, **VLLM}[name]
        try:
            return run_ranks(ranks, exercise, engine, *layout, *folders[name], timeout=120)
        except RanksFailed as failure:  # kept, so that the other tests do not run into it anew
            return failure

    def get(name: str) -> dict:
        found = outcome(name)
        if isinstance(found, RanksFailed):
            raise found
        assert all(other == found[0] for other in found), "ranks disagree"
        return found[0]

    return get


every_layout = pytest.mark.parametrize("layout", [*MEGATRON, *(pytest.param(name, marks=pytest.mark.slow) for name in VLLM)])


def exercise(engine_name: str, tp: int, engine_tp: int, sequence_parallel: bool, first: Path, second: Path) -> dict:
    """Body of a rank: build policy and engine, draw in several ways, change the weights, probe."""
    from nemo_amft.models.builder import build_policy
    from nemo_amft.models.hub_weights import export_hub_weights, load_hub_weights

    hub_config = AutoConfig.from_pretrained(first)
    model = ModelConfig(tensor_model_parallel_size=tp, sequence_parallel=sequence_parallel)
    groups.initialize(model, seed=1)
    with platform.megatron():
        chunks = build_policy(hub_config, model, "32", VOCAB_SIZE)
    load_hub_weights(chunks, hub_config, first)

    def policy_log_probs(sequences: list[TokenSequence], temperature: float = 1.0) -> list[list[float]]:
        return [_log_probs(chunks[0], chunks[0], sequence, temperature, tp) for sequence in sequences]

    before = _process_state()
    rollout = RolloutConfig(**{**asdict(ROLLOUT), "tensor_model_parallel_size": engine_tp})
    if engine_name == "megatron":
        from nemo_amft.rollout.megatron import MegatronEngine

        engine = MegatronEngine(chunks, rollout, VOCAB_SIZE, MAX_LENGTH, _two_digits().backend_tokenizer)
    else:
        from nemo_amft.rollout.vllm import VLLMEngine

        weights = lambda: export_hub_weights(chunks, hub_config)  # noqa: E731
        engine = VLLMEngine(first, rollout, "32", MAX_LENGTH, weights, VOCAB_SIZE, tokenizer=_two_digits())
    engine.wake()
    found: dict = {"process state kept": _process_state() == before}

    def draw(requests=REQUESTS, **params) -> list[Completion]:
        return engine.generate(requests, SamplingParams(NEW_TOKENS, **params))

    chunks[0].train()
    found["greedy"] = engine.generate(REQUESTS, GREEDY)
    for temperature in (0.7, 1.0):
        completions = draw(temperature=temperature)
        ours = policy_log_probs([_sequence(r, c) for r, c in zip(REQUESTS, completions, strict=True)], temperature)
        theirs = [(0.0,) * len(r.prompt_token_ids) + c.log_probs for r, c in zip(REQUESTS, completions, strict=True)]
        found[f"log-prob error {temperature}"] = max(
            abs(a - b) for x, y in zip(ours, theirs, strict=True) for a, b in zip(x, y, strict=True)
        )
        found[f"sampled {temperature}"] = [c.token_ids for c in completions]
    stop = found["greedy"][0].token_ids[4]
    found["stopped"] = draw(temperature=0.0, stop_token_ids=(stop,))
    found["stopped by strings"] = draw(temperature=0.0, stop=_stop_strings(found["greedy"][0]))
    found["top-k 1"] = [c.token_ids for c in draw(temperature=1.0, top_k=1)]
    wide, hot, n = engine, 2.0, 32  # vLLM's limit
    if engine_name == "megatron":
        wide, hot, n = MegatronEngine(chunks, replace(rollout, max_num_seqs=450), VOCAB_SIZE, MAX_LENGTH), 5.0, 900
    many = [Request(PROMPTS[0], seed=i) for i in range(n)]
    for name, params in {"all": {}, "top-p": {"top_p": 0.99}, "top-k": {"top_k": 120}}.items():
        drawn = wide.generate(many if name == "all" else many[:32], SamplingParams(NEW_TOKENS, hot, **params))
        found[f"largest id, {name}"] = max(max(c.token_ids) for c in drawn)
    found["none"] = draw([])
    found["one"] = draw(REQUESTS[3:4], temperature=1.0)[0].token_ids
    unseeded = [Request(prompt) for prompt in PROMPTS]
    state = torch.get_rng_state()
    found["unseeded"] = [c.token_ids for seed in range(2) for c in draw(unseeded, temperature=1.0, seed=seed)]
    found["random state kept"] = torch.equal(state, torch.get_rng_state())
    found["training kept"] = chunks[0].training and chunks[0].config.sequence_parallel == sequence_parallel
    try:
        draw([Request((1,) * (MAX_LENGTH - NEW_TOKENS + 1))])
    except UserError as error:
        found["too long"] = str(error)

    found["probe"] = probe(engine, policy_log_probs, PROMPTS, SamplingParams(NEW_TOKENS), tolerance=1e-4)["max_abs_diff"]
    load_hub_weights(chunks, hub_config, second)  # as if it had been trained
    try:
        probe(engine, policy_log_probs, PROMPTS, SamplingParams(NEW_TOKENS), tolerance=0.02)
    except RuntimeError as error:
        found["stale"] = str(error)
    engine.sleep()
    engine.update_weights()
    engine.wake()
    found["synced"] = probe(engine, policy_log_probs, PROMPTS, SamplingParams(NEW_TOKENS), tolerance=1e-4)["max_abs_diff"]
    found["greedy after sync"] = engine.generate(REQUESTS, GREEDY)
    engine.close()
    total = torch.ones(())
    dist.all_reduce(total)
    found["world stands after close"] = total.item() == dist.get_world_size()
    return found


def _two_digits() -> PreTrainedTokenizerFast:
    """Every token is its id in two digits, the last one "<end>"."""
    vocabulary = {f"{i:02d}" if i < 100 else "<end>": i for i in range(VOCAB_SIZE)}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<end>"))
    core.decoder = decoders.Fuse()
    core.add_special_tokens(["<end>"])
    return PreTrainedTokenizerFast(tokenizer_object=core)


def _stop_strings(completion: Completion) -> tuple[str, str]:
    """One that the completion never holds, and one that begins within its fourth token and is complete within its fifth."""
    return "x", "".join(f"{i:02d}" for i in completion.token_ids)[7:9]


def _process_state() -> tuple:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("VLLM_", "TORCHDYNAMO_"))}
    generators = random.getstate(), numpy.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    return environment, torch.get_num_threads(), torch.get_default_dtype(), torch.set_num_threads.__name__, generators


def _sequence(request: Request, completion: Completion) -> TokenSequence:
    prompt, new = request.prompt_token_ids, completion.token_ids
    return TokenSequence((*prompt, *new), (False,) * len(prompt) + (True,) * len(new))


def _log_probs(
    chunk: torch.nn.Module, model: torch.nn.Module, sequence: TokenSequence, temperature: float, multiple: int
) -> list[float]:
    """By a full forward pass of the policy in training's way: 0 where not trained."""
    length = len(sequence.tokens)
    padded = length + -length % multiple
    tokens, mask = torch.zeros(1, padded, dtype=torch.int64), torch.zeros(1, padded, dtype=torch.bool)
    tokens[0, :length] = torch.tensor(sequence.tokens)
    mask[0, : length - 1] = torch.tensor(sequence.trained[1:])
    model.logprob_temperature = temperature
    with torch.no_grad(), platform.megatron():
        output = chunk(tokens, torch.arange(padded)[None], None, labels=tokens.roll(-1, 1), loss_mask=mask)
    return [0.0, *output[0, 0, : length - 1].tolist()]


def _greedy_by_transformers(folder: Path, prompts: Sequence[tuple[int, ...]] = PROMPTS) -> list[tuple[int, ...]]:
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.resize_token_embeddings(VOCAB_SIZE)  # cuts its embeddings and head
    lengths = {"max_new_tokens": NEW_TOKENS, "min_new_tokens": NEW_TOKENS, "do_sample": False}
    return [tuple(model.generate(torch.tensor([prompt]), **lengths)[0, len(prompt) :].tolist()) for prompt in prompts]


@every_layout
def test_greedy_tokens_are_those_of_transformers_in_the_order_of_the_requests(run, folders, layout):
    expected = _greedy_by_transformers(folders[layout][0])
    assert [c.token_ids for c in run(layout)["greedy"]] == expected
    assert not any(c.finished for c in run(layout)["greedy"])


@every_layout
@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_log_probs_are_of_the_distribution_that_was_sampled(run, layout, temperature):
    assert run(layout)[f"log-prob error {temperature}"] < 1e-4


@pytest.mark.parametrize("layout", [name for name in MEGATRON if name != "megatron"])
def test_seeds_give_the_same_tokens_on_every_megatron_layout(run, layout):
    for key in ("sampled 0.7", "sampled 1.0", "unseeded", "one"):
        assert run(layout)[key] == run("megatron")[key], key


@pytest.mark.slow
def test_seeds_give_the_same_tokens_on_every_vllm_layout(run):
    for key in ("sampled 0.7", "sampled 1.0", "one"):
        assert run("vllm TP2")[key] == run("vllm 2 engines")[key], key


@every_layout
def test_samples_differ_by_seed_and_a_request_does_not_depend_on_its_batch(run, layout):
    sampled = run(layout)["sampled 1.0"]
    assert len({sampled[0], sampled[1], sampled[4]}) == 3  # one prompt, three seeds
    assert run(layout)["one"] == sampled[3]
    unseeded = run(layout)["unseeded"]
    assert unseeded[: len(PROMPTS)] != unseeded[len(PROMPTS) :]
    assert len({unseeded[0], unseeded[1], unseeded[4]}) == 3


@every_layout
def test_a_stop_token_is_the_last_id_and_marks_the_completion_finished(run, layout):
    stop = run(layout)["greedy"][0].token_ids[4]
    for completion, unstopped in zip(run(layout)["stopped"], run(layout)["greedy"], strict=True):
        found = stop in unstopped.token_ids
        end = unstopped.token_ids.index(stop) + 1 if found else NEW_TOKENS
        assert completion.token_ids == unstopped.token_ids[:end]
        assert completion.finished is found
        assert len(completion.log_probs) == end


@every_layout
def test_a_stop_string_ends_a_completion_with_the_token_that_completes_it(run, layout):
    stop = _stop_strings(run(layout)["greedy"][0])[1]
    ended = 0
    for completion, unstopped in zip(run(layout)["stopped by strings"], run(layout)["greedy"], strict=True):
        texts = ["".join(f"{i:02d}" if i < 100 else "<end>" for i in unstopped.token_ids[:n]) for n in range(NEW_TOKENS + 1)]
        end = next((n for n, text in enumerate(texts) if stop in text), None)
        assert completion.token_ids == unstopped.token_ids[:end]
        assert completion.finished is (end is not None)
        assert len(completion.log_probs) == len(completion.token_ids)
        ended += completion.finished and end < NEW_TOKENS
    assert ended >= 3  # the three requests of one prompt, at least


@every_layout
def test_top_k_of_one_is_greedy(run, layout):
    assert run(layout)["top-k 1"] == [c.token_ids for c in run(layout)["greedy"]]


@every_layout
def test_no_id_beyond_the_tokenizer_s_is_drawn_however_hot(run, layout):
    """10,800 draws at temperature 5, of which the largest id is one, or 384 at 2; and with truncation."""
    largest = [run(layout)[f"largest id, {name}"] for name in ("all", "top-p", "top-k")]
    assert max(largest) < VOCAB_SIZE
    assert largest[0] == VOCAB_SIZE - 1 or layout in VLLM


@every_layout
def test_no_requests_give_no_completions(run, layout):
    assert run(layout)["none"] == []


@every_layout
def test_a_prompt_that_is_too_long_is_refused_in_one_line(run, layout):
    assert run(layout)["too long"].startswith(
        "rollout: a prompt of 29 tokens and max_new_tokens=12 make 41, expected at most 40"
    )


@every_layout
def test_the_process_is_left_as_it_was(run, layout):
    for key in ("process state kept", "random state kept", "training kept", "world stands after close"):
        assert run(layout)[key], key


@pytest.mark.slow
@pytest.mark.parametrize("layout", VLLM)
def test_stale_weights_are_caught_by_the_probe(run, layout):
    assert "disagree on the log-probs of 72 freshly drawn tokens" in run(layout)["stale"]


@every_layout
def test_update_weights_takes_the_policy_over(run, folders, layout):
    assert run(layout)["probe"] < 1e-4
    assert run(layout)["synced"] < 1e-4
    assert [c.token_ids for c in run(layout)["greedy after sync"]] == _greedy_by_transformers(folders[layout][1])


def decode_after_a_step(folder: Path) -> tuple[float, float]:
    """One optimiser step whose parameters are gathered late, then one request: the second replica has nothing to decode."""
    from nemo_amft.models.builder import build_policy
    from nemo_amft.models.hub_weights import load_hub_weights
    from nemo_amft.models.trainable import TrainableModel
    from nemo_amft.rollout.megatron import MegatronEngine

    hub_config, model = AutoConfig.from_pretrained(folder), ModelConfig()
    place = groups.initialize(model, seed=1)
    with platform.megatron():
        chunks = build_policy(hub_config, model, "32", VOCAB_SIZE)
    load_hub_weights(chunks, hub_config, folder)
    optim = OptimConfig(lr=0.01, overlap_grad_reduce=True, overlap_param_gather=True)
    policy = TrainableModel(chunks, model, optim, "32", place)
    engine = MegatronEngine(policy.chunks, ROLLOUT, VOCAB_SIZE, MAX_LENGTH)
    before = engine.generate(REQUESTS[:1], GREEDY)[0]

    policy.zero_gradients()
    torch.manual_seed(0)
    for parameter in chunks[0].parameters():
        parameter.main_grad.normal_()
    policy.finish_gradients()
    for group in policy.optimizer.param_groups:
        group["lr"] = optim.lr
    policy.step()
    completion = engine.generate(REQUESTS[:1], GREEDY)[0]
    expected = _log_probs(policy.chunks[0], chunks[0], _sequence(REQUESTS[0], completion), 1.0, 1)[-NEW_TOKENS:]
    error = max(abs(a - b) for a, b in zip(completion.log_probs, expected, strict=True))
    return error, abs(completion.log_probs[0] - before.log_probs[0])


def test_decoding_sees_a_step_whose_parameters_are_gathered_late(folders):
    for error, moved in run_ranks(2, decode_after_a_step, folders["megatron"][0]):
        assert error < 1e-4
        assert moved > 0.01


# name: (layout of training, tensor-parallel size of the engine); from TP2 to either is among `VLLM`
ELSEWHERE = {
    "DP2 to TP2": (ModelConfig(), 2),
    "PP2 to TP2": (ModelConfig(pipeline_model_parallel_size=2), 2),
    "PP2 to 2 engines": (ModelConfig(pipeline_model_parallel_size=2), 1),
}
LONG = tuple(7 * i % VOCAB_SIZE for i in range(70))
LONG_TOO = (*LONG[:40], *reversed(LONG[40:]))
SAMPLES = [Request(prompt) for prompt in (LONG, LONG_TOO) for _ in range(4)]
MANY = [Request((*divmod(i, 10), *LONG[2:]), seed=i) for i in range(130)]
"""More prompt tokens than vLLM computes in one step."""


@pytest.fixture(scope="module")
def elsewhere(folders) -> dict[str, dict]:
    """What the engines of `ELSEWHERE` found, one after another in the same processes."""
    first, other = run_ranks(2, exercise_elsewhere, *folders[False], timeout=180)
    assert first == other, "ranks disagree"
    return first


def exercise_elsewhere(first: Path, second: Path) -> dict[str, dict]:
    """Body of a rank: engines of other layouts than the policy's, before and after the weights change."""
    from megatron.core import parallel_state

    from nemo_amft.models.builder import build_policy
    from nemo_amft.models.hub_weights import export_hub_weights, load_hub_weights
    from nemo_amft.rollout.vllm import VLLMEngine

    hub_config, found = AutoConfig.from_pretrained(first), {}
    for name, (model, engine_tp) in ELSEWHERE.items():
        groups.initialize(model, seed=1)
        with platform.megatron():
            chunks = build_policy(hub_config, model, "32", VOCAB_SIZE)
        load_hub_weights(chunks, hub_config, first)
        rollout = replace(ROLLOUT, tensor_model_parallel_size=engine_tp, max_num_seqs=128)
        engine = VLLMEngine(
            first,
            rollout,
            "32",
            len(LONG) + NEW_TOKENS,
            lambda chunks=chunks: export_hub_weights(chunks, hub_config, 50_000),
            VOCAB_SIZE,
        )
        engine.wake()
        one, cached = found.setdefault(name, {}), []
        _record_cached_tokens(engine, cached)
        one["greedy"] = [c.token_ids for c in engine.generate(REQUESTS, GREEDY)]
        one["samples"] = [c.token_ids for c in engine.generate(SAMPLES, GREEDY)]
        load_hub_weights(chunks, hub_config, second)
        engine.update_weights()
        one["greedy after sync"] = [c.token_ids for c in engine.generate(REQUESTS, GREEDY)]
        one["samples after sync"] = [c.token_ids for c in engine.generate(SAMPLES, GREEDY)]
        many = engine.generate(MANY, SamplingParams(NEW_TOKENS))
        one["many"], one["alone"] = many[-1].token_ids, engine.generate(MANY[-1:], SamplingParams(NEW_TOKENS))[0].token_ids
        expected = load_file(second / "model.safetensors")
        one["policy kept"] = all(expected[key].equal(t) for key, t in export_hub_weights(chunks, hub_config))
        one["cached"] = [None] * dist.get_world_size()
        dist.all_gather_object(one["cached"], cached)
        engine.close()
        parallel_state.destroy_model_parallel()
    return found


def _record_cached_tokens(engine, record: list[list[int]]) -> None:
    """Append, for each batch that this rank's vLLM draws, the prompt tokens of every request that came from the cache."""
    generate = engine._llm.generate

    def recording(*args, **kwargs):
        outputs = generate(*args, **kwargs)
        record.append([output.num_cached_tokens for output in outputs])
        return outputs

    engine._llm.generate = recording


@pytest.mark.slow
@pytest.mark.parametrize("layout", ELSEWHERE)
def test_engines_have_a_layout_of_their_own(elsewhere, folders, layout):
    for key, folder in zip(("greedy", "greedy after sync"), folders[False], strict=True):
        assert elsewhere[layout][key] == _greedy_by_transformers(folder)
    assert elsewhere[layout]["policy kept"]


@pytest.mark.slow
def test_samples_of_a_prompt_compute_it_once_until_the_weights_change(elsewhere, folders):
    # Blocks of 32: of 70 tokens 64 are shared by the samples, and 32 by two prompts whose first 40 are alike. Of two engines
    # each has a prompt.
    for layout, prefill in (("PP2 to TP2", [0, 64, 64, 64, 32, 64, 64, 64]), ("PP2 to 2 engines", [0, 64, 64, 64])):
        found = elsewhere[layout]
        for key, folder in zip(("samples", "samples after sync"), folders[False], strict=True):
            expected = _greedy_by_transformers(folder, [LONG, LONG_TOO])
            assert found[key] == [expected[0]] * 4 + [expected[1]] * 4
        for cached in found["cached"]:
            assert cached[1] == cached[3] == prefill


@pytest.mark.slow
@pytest.mark.parametrize("layout", ELSEWHERE)
def test_a_seed_holds_where_prompts_exceed_what_a_step_computes(elsewhere, layout):
    assert elsewhere[layout]["many"] == elsewhere[layout]["alone"]
