"""Estimates, intervals and paired tests, against enumeration and SciPy; answers that survive a killed run."""

from __future__ import annotations

import itertools
import json
import random

import numpy as np
import pytest
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from nemo_amft import compare
from nemo_amft.algorithms.sampling import Sampler
from nemo_amft.config.load import load
from nemo_amft.evaluation import metrics
from nemo_amft.evaluation.answers import Answers, chunks
from nemo_amft.evaluation.checkpoint import fingerprint, hub_model_of
from nemo_amft.evaluation.comparison import (
    MAX_EXACT,
    bootstrap_interval,
    compare_averages,
    compare_scores,
    permutation_p,
    sign_p,
)
from nemo_amft.evaluation.problems import ProblemSet, problem_hash
from nemo_amft.evaluation.results import averages, benchmark_result
from nemo_amft.evaluation.run import BenchmarkRun
from nemo_amft.observe.timers import PhaseTimers
from nemo_amft.tasks.math.graders import BenchmarkVerifier
from nemo_amft.types import Completion, Example, UserError

# ---- estimates


@given(st.integers(1, 9).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n))))
def test_pass_at_k_is_the_share_of_subsets_with_a_correct_response(numbers):
    n, c, k = numbers
    responses = [True] * c + [False] * (n - c)
    subsets = list(itertools.combinations(responses, k))
    assert metrics.pass_at_k(n, c, k) == pytest.approx(sum(map(any, subsets)) / len(subsets), abs=1e-12)


def test_pass_at_k_is_unbiased():
    p, n, k = 0.3, 6, 3
    expected = sum(stats.binom.pmf(c, n, p) * metrics.pass_at_k(n, c, k) for c in range(n + 1))
    assert expected == pytest.approx(1 - (1 - p) ** k, abs=1e-12)


def test_ks_are_powers_of_two_and_all():
    assert [metrics.ks(n) for n in (1, 2, 6, 32)] == [[1], [1, 2], [1, 2, 4, 6], [1, 2, 4, 8, 16, 32]]


@given(st.integers(1, 2000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilsons_interval_is_scipys(numbers):
    successes, n = numbers
    expected = stats.binomtest(successes, n).proportion_ci(0.95, method="wilson")
    assert metrics.wilson(successes, n) == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_no_success_in_thirty_problems_is_not_certainty():
    low, high = metrics.mean_interval([0.0] * 30)
    assert low == 0.0
    assert high == pytest.approx(0.1135, abs=5e-4)


@pytest.mark.parametrize("size", [30, 300])
def test_the_bootstrap_is_scipys(size):
    scores = np.random.default_rng(1).integers(0, 33, size) / 32
    found = metrics.mean_interval(scores.tolist())
    expected = stats.bootstrap(
        (scores,), np.mean, n_resamples=20_000, method="percentile", random_state=np.random.default_rng(2)
    )
    width = expected.confidence_interval.high - expected.confidence_interval.low
    assert found == pytest.approx(tuple(expected.confidence_interval), abs=0.03 * width)


def test_both_ways_of_resampling_have_one_law():
    values = np.random.default_rng(1).random(80)  # 80 distinct values: drawn one by one; rounded: by their counts
    one = metrics.percentiles(metrics.resampled_means(values, np.random.default_rng(2)))
    other = metrics.percentiles(metrics.resampled_means(values.round(1), np.random.default_rng(2)))
    assert one == pytest.approx(other, abs=0.01)


def test_the_interval_covers_the_truth_as_often_as_it_says():
    generator = np.random.default_rng(3)
    covered = 0
    for _ in range(200):
        chances = generator.beta(0.5, 0.5, 60)  # problems are easy or hard
        scores = generator.binomial(8, chances) / 8
        low, high = metrics.mean_interval(scores.tolist())
        covered += low <= 0.5 <= high
    assert 0.89 <= covered / 200 <= 0.99


def test_the_interval_of_an_average_is_the_stratified_bootstraps_and_has_a_width_without_successes():
    generator = np.random.default_rng(4)
    benchmarks = [generator.integers(0, 9, size) / 8 for size in (40, 200, 90)]
    found = metrics.average_interval([scores.tolist() for scores in benchmarks])
    drawn = [[generator.choice(scores, len(scores)).mean() for scores in benchmarks] for _ in range(5000)]
    assert found == pytest.approx(tuple(np.quantile(np.mean(drawn, axis=1), [0.025, 0.975])), abs=0.005)
    assert metrics.average_interval([[0.0] * 30]) == metrics.wilson(0, 30)
    low, high = metrics.average_interval([[0.0] * 30, [0.0] * 30])
    assert (low, high) == (0.0, pytest.approx(metrics.wilson(0, 30)[1] / 2**0.5))


# ---- paired comparison


@given(st.integers(0, 40), st.integers(0, 40))
def test_the_sign_test_is_scipys(wins, losses):
    expected = stats.binomtest(wins, wins + losses).pvalue if wins + losses else 1.0
    assert sign_p(wins, losses) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("size", [8, 40])
def test_the_permutation_test_is_scipys(size):
    differences = np.random.default_rng(size).integers(-4, 7, size) / 8
    assert (np.count_nonzero(differences) <= MAX_EXACT) == (size == 8)
    found = permutation_p([differences])
    expected = stats.permutation_test(
        (differences, np.zeros(size)), lambda a, b, axis: np.mean(a - b, axis=axis), permutation_type="samples",
        vectorized=True, n_resamples=20_000 if size > 8 else np.inf, random_state=np.random.default_rng(1),
    ).pvalue  # fmt: skip
    assert found == pytest.approx(expected, abs=1e-9 if size == 8 else 0.01)


def test_p_is_uniform_where_there_is_no_difference():
    generator = np.random.default_rng(5)
    found = [permutation_p([generator.integers(-3, 4, 12) / 3]) for _ in range(400)]
    assert np.mean(np.asarray(found) <= 0.1) == pytest.approx(0.1, abs=0.05)


def test_pairing_finds_what_two_intervals_would_not():
    a = np.tile([0.0, 1.0], 50)
    b = a.copy()
    b[:16:2] = 1.0  # eight problems solved more, none lost
    found = compare_scores(a.tolist(), b.tolist())
    assert (found["wins"], found["losses"], found["ties"]) == (8, 0, 92)
    assert found["difference"] == pytest.approx(0.08)
    assert found["interval"][0] > 0
    assert found["p_sign"] == pytest.approx(2 / 2**8)
    assert found["p_permutation"] == pytest.approx(2 / 2**8)
    assert metrics.mean_interval(a.tolist())[1] > metrics.mean_interval(b.tolist())[0]


def test_the_mean_of_benchmarks_weighs_each_once():
    large, small = ([0.0] * 1000, [0.0] * 1000), ([0.0] * 10, [1.0] * 10)
    found = compare_averages([large, small])
    assert (found["mean_a"], found["mean_b"], found["difference"]) == (0.0, 0.5, 0.5)
    assert found["p_permutation"] == pytest.approx(2 / 2**10)
    assert bootstrap_interval([np.zeros(1000), np.ones(10)]) == (0.5, 0.5)


# ---- answers on disk


@given(st.lists(st.integers(1, 4), min_size=1, max_size=6), st.integers(1, 7), st.data())
def test_what_is_done_is_not_drawn_again_and_cuts_stay_where_they_were(samples, size, data):
    places = [(i, s) for i, count in enumerate(samples) for s in range(count)]
    done = data.draw(st.sets(st.sampled_from(places)))
    pieces = chunks(samples, size, done)
    assert [p for piece in pieces for p in piece] == [p for p in places if p not in done]
    whole = chunks(samples, size, set())
    assert all(any(set(piece) <= set(one) for one in whole) for piece in pieces)


def _row(index: int, sample: int, key: str, correct: bool = True) -> dict:
    verdicts = {"oat": {"correct": correct, "status": "ok", "detail": ""}}
    return {"id": f"x/{index}", "index": index, "sample": sample, "key": key, "response": "a\u2028b", "finished": True,
            "tokens": 3, "verdicts": verdicts}  # fmt: skip


def test_a_torn_line_is_dropped_and_the_rest_is_kept(tmp_path):
    answers = Answers(tmp_path, "x", {"seed": 1}, ["a", "b"])
    answers.append([_row(0, 0, "a"), _row(1, 0, "b")])
    file = tmp_path / "answers" / "x.jsonl"
    with file.open("ab") as torn:
        torn.write(b'{"index": 1, "sam')
    again = Answers(tmp_path, "x", {"seed": 1}, ["a", "b"])
    assert set(again.rows) == {(0, 0), (1, 0)}
    again.append([_row(0, 1, "a")])
    assert [json.loads(line)["sample"] for line in file.read_bytes().splitlines()] == [0, 0, 1]


def test_answers_drawn_otherwise_are_refused(tmp_path):
    Answers(tmp_path, "x", {"temperature": 0.6}, ["a"]).append([_row(0, 0, "a")])
    with pytest.raises(UserError, match=r"x\.json: temperature: found 0\.6, expected 0\.7; give exp_manager"):
        Answers(tmp_path, "x", {"temperature": 0.7}, ["a"])
    with pytest.raises(UserError, match=r"x\.jsonl, line 1: found an answer to another problem"):
        Answers(tmp_path, "x", {"temperature": 0.6}, ["b"])
    for line in ({}, _row("0", 0, "a"), _row(-1, 0, "a"), {k: v for k, v in _row(0, 0, "a").items() if k != "id"}):
        (tmp_path / "answers" / "x.jsonl").write_text(json.dumps(line) + "\n")
        with pytest.raises(UserError, match=r"x\.jsonl, line 1: found a damaged line"):
            Answers(tmp_path, "x", {"temperature": 0.6}, ["a"])
    for settings in ("", "[]"):
        (tmp_path / "answers" / "x.json").write_text(settings)
        with pytest.raises(UserError, match=r"x\.json: (not readable as JSON|found a JSON list)"):
            Answers(tmp_path, "x", {"temperature": 0.6}, ["a"])


# ---- a whole evaluation, by a model that is a random generator


class DiceEngine:
    """Answers "a + b" rightly or not, as the request's seed falls; the end of its patience is a kill."""

    def __init__(self, patience: int | None = None):
        self.patience, self.seeds = patience, []

    def generate(self, requests, params):
        if self.patience is not None and len(self.seeds) >= self.patience:
            raise KeyboardInterrupt
        self.seeds += [request.seed for request in requests]
        return [self._answer(request) for request in requests]

    @staticmethod
    def _answer(request) -> Completion:
        a, _, b = "".join(map(chr, request.prompt_token_ids)).partition("+")
        dice = random.Random(request.seed)
        text = f"\\boxed{{{int(a) + int(b) + dice.choice([0, 0, 1])}}}" if dice.random() > 0.1 else "no"
        ids = (*map(ord, text), 0)
        return Completion(ids, (0.0,) * len(ids), True)


class Letters:
    """A chat template of code points."""

    def prompt_ids(self, messages):
        return tuple(map(ord, messages[-1]["content"]))

    def response_text(self, ids):
        return "".join(map(chr, ids)).removesuffix("\0")


class OneProcess:
    is_main = True


class DiceSampler:
    """Engine, template and grader without processes."""

    stop_token_ids, stop, place, text = (0,), (), OneProcess(), Sampler.text

    def __init__(self, engine):
        self.engine, self.chat, self.timers, self.graded = engine, Letters(), PhaseTimers(), 0
        self.verifier = BenchmarkVerifier(thinking=False)

    def grade(self, examples, responses, finished):
        self.graded += len(examples)
        rows = zip(examples, responses, finished, strict=True)
        return [self.verifier(example.answer, turns[-1], end) for example, turns, end in rows]


@pytest.fixture(autouse=True, scope="module")
def one_rank():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def _problems(count: int = 7, samples: int = 4, graders=("oat",)) -> ProblemSet:
    examples = [
        Example(f"sums/{i}", ({"role": "user", "content": f"{i}+{2 * i}"},), str(3 * i), metadata={"category": "ab"[i % 2]})
        for i in range(count)
    ]
    return ProblemSet("sums", "Sums", examples, list(map(problem_hash, examples)), [samples] * count, graders)


def _evaluate(run_dir, engine, problems=None, *overrides):
    config = load(["--config-name", "evaluate", "evaluation.chunk=5", *overrides], check=False)
    sampler = DiceSampler(engine)
    sets = {"sums": problems or _problems()}
    about = {"checkpoint": "dice"}
    assert BenchmarkRun(config, sampler, sets, run_dir, about, "m", None, lambda: None, lambda text: None).complete()
    return json.loads((run_dir / "evaluation.json").read_text())


def test_a_killed_evaluation_continues_to_the_result_of_an_unbroken_one(tmp_path):
    unbroken = DiceEngine()
    expected = _evaluate(tmp_path / "unbroken", unbroken)
    broken = DiceEngine(patience=10)
    with pytest.raises(KeyboardInterrupt):
        _evaluate(tmp_path / "broken", broken)
    assert len((tmp_path / "broken" / "answers" / "sums.jsonl").read_text().splitlines()) == 10
    continued = DiceEngine()
    assert _evaluate(tmp_path / "broken", continued) == expected
    assert len(expected["benchmarks"]["sums"]["per_problem"]) == 7
    assert broken.seeds + continued.seeds == unbroken.seeds
    assert len(set(unbroken.seeds)) == 28
    rows = [(tmp_path / name / "answers" / "sums.jsonl").read_text() for name in ("unbroken", "broken")]
    assert rows[0] == rows[1]
    finished = DiceEngine()
    assert _evaluate(tmp_path / "broken", finished) == expected
    assert finished.seeds == []


def test_scores_follow_from_the_answers(tmp_path):
    result = _evaluate(tmp_path, DiceEngine())["benchmarks"]["sums"]
    rows = [json.loads(line) for line in (tmp_path / "answers" / "sums.jsonl").read_text().splitlines()]
    right = [[f"{{{row['gold'][0]}}}" in row["response"] for row in rows if row["index"] == i] for i in range(7)]
    assert [p["correct"] for p in result["per_problem"]] == [sum(one) for one in right]
    assert result["mean"] == pytest.approx(np.mean(right))
    pairs = [list(itertools.combinations(one, 2)) for one in right]
    assert result["pass_at_k"]["2"]["mean"] == pytest.approx(np.mean([[any(pair) for pair in one] for one in pairs]))
    assert result["pass_at_k"]["4"]["mean"] == pytest.approx(np.mean([any(one) for one in right]))
    assert result["categories"]["a"]["mean"] == pytest.approx(np.mean(right[::2]))
    assert 0 < result["mean"] < result["pass_at_k"]["4"]["mean"]
    assert "| Sums" in (tmp_path / "evaluation.md").read_text()


def test_more_samples_and_other_graders_take_what_is_there(tmp_path):
    few, more = DiceEngine(), DiceEngine()
    first = _evaluate(tmp_path, few, _problems(samples=2))["benchmarks"]["sums"]
    second = _evaluate(tmp_path, more, _problems(samples=3, graders=("oat", "math_verify")))["benchmarks"]["sums"]
    assert (len(few.seeds), len(more.seeds)) == (14, 7)
    assert first["other_graders"] == {}
    assert second["other_graders"]["math_verify"] == pytest.approx(second["mean"])  # both can tell a sum
    with pytest.raises(UserError, match=r"temperature: found 0\.6, expected 0\.5"):
        _evaluate(tmp_path, few, None, "evaluation.temperature=0.5")


def test_asked_to_stop_it_stops_between_chunks(tmp_path):
    config = load(["--config-name", "evaluate", "evaluation.chunk=5"], check=False)
    reasons = iter([None, None, "asked to by a signal"])
    run = BenchmarkRun(
        config,
        DiceSampler(DiceEngine()),
        {"sums": _problems()},
        tmp_path,
        {},
        "m",
        None,
        lambda: next(reasons),
        lambda text: None,
    )
    assert run.complete() is False
    assert len((tmp_path / "answers" / "sums.jsonl").read_text().splitlines()) == 10
    assert not (tmp_path / "evaluation.json").exists()


def _result(correct, samples=1) -> dict:
    """samples: of every problem, or of each."""
    examples = [Example(f"x/{i}", ({"role": "user", "content": str(i)},), "1") for i in range(len(correct))]
    drawn = samples if isinstance(samples, list) else [samples] * len(correct)
    problems = ProblemSet("x", "X", examples, list(map(problem_hash, examples)), drawn, ("oat",))
    rows = {(i, s): _row(i, s, problems.keys[i], s < c) for i, c in enumerate(correct) for s in range(drawn[i])}
    return benchmark_result(problems, rows, None)


def test_scores_and_intervals_are_over_problems_however_often_one_is_drawn():
    result = _result([4, 1, 0], samples=[4, 4, 1])
    assert result["mean"] == pytest.approx((1 + 1 / 4 + 0) / 3)
    assert result["interval"] == metrics.mean_interval([1, 1 / 4, 0])
    assert (result["problems"], result["samples"], list(result["pass_at_k"])) == (3, 1, ["1"])
    assert [p["samples"] for p in result["per_problem"]] == [4, 4, 1]
    assert _result([2, 2, 0, 0], samples=2)["interval"] == _result([32, 32, 0, 0], samples=32)["interval"]


TABLE_2 = ["aime24", "amc", "math500", "minerva", "olympiadbench"]


def test_averages_are_means_of_benchmark_means_by_name():
    results = {name: _result([1, 0]) for name in TABLE_2} | {
        "aime25": _result([1, 1, 1, 1]),
        "arc_c": _result([0]),
        "own": _result([1]),
    }
    found = averages(results)
    assert {name: average["mean"] for name, average in found.items()} == {
        "in distribution, Table 2": 0.5, "in distribution, LUFFY": pytest.approx(3.5 / 6),
        "out of distribution (1 of 3 sets)": 0.0, "all": pytest.approx(4.5 / 8),
    }  # fmt: skip
    assert found["in distribution, Table 2"]["benchmarks"] == TABLE_2
    assert found["in distribution, LUFFY"]["benchmarks"] == [*TABLE_2, "aime25"]


@pytest.mark.parametrize(
    ("sets", "names"),
    [
        (TABLE_2, ["in distribution, Table 2", "all"]),  # LUFFY's would be the same five
        (["amc", "aime25"], ["in distribution, Table 2 (1 of 5 sets)", "in distribution, LUFFY (2 of 6 sets)", "all"]),
        (["own"], ["all"]),
    ],
)
def test_an_average_does_not_claim_sets_that_it_lacks(sets, names):
    assert list(averages({name: _result([1]) for name in sets})) == names


# ---- nemo_amft.compare


def _write(folder, **benchmarks):
    folder.mkdir()
    about = {"seed": 1, "temperature": 0.6}
    (folder / "evaluation.json").write_text(json.dumps({**about, "benchmarks": benchmarks}))
    return folder


def test_two_evaluations_are_compared_problem_by_problem(tmp_path, capsys):
    a = _write(tmp_path / "a", x=_result([1, 0, 0, 0]), y=_result([0, 4], samples=4))
    b = _write(tmp_path / "b", x=_result([1, 1, 1, 0]), y=_result([2, 4], samples=4))
    assert compare.main([str(a), str(b), "--out", str(tmp_path / "out.json")]) == 0
    out = json.loads((tmp_path / "out.json").read_text())
    assert out["benchmarks"]["x"]["difference"] == pytest.approx(0.5)
    assert out["benchmarks"]["y"]["difference"] == pytest.approx(0.25)
    assert out["mean"]["difference"] == pytest.approx(0.375)
    assert "+37.5" in capsys.readouterr().out


def test_the_order_of_the_rows_does_not_matter(tmp_path):
    a, b = _result([1, 0, 0]), _result([1, 0, 0])
    b["per_problem"].reverse()
    found = compare.compare({"file": "a", "benchmarks": {"x": a}}, {"file": "b", "benchmarks": {"x": b}, "temperature": 1.0})
    assert found["benchmarks"]["x"]["ties"] == 3
    assert found["notes"] == ["temperature: None in A, 1.0 in B"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": _result([1, 0, 0])}, "b/evaluation.json: x: found 3 problems, 2 of them among the 2 of "),
        ({"x": _result([1, 0]) | {"grader": "math_verify"}}, "b/evaluation.json: x: found scores by math_verify, expected oat"),
        ({"y": _result([1, 0])}, "b/evaluation.json: found no benchmark x, which "),
        ({}, "b/evaluation.json: found no benchmarks, expected evaluation.json"),
        ({"x": {"title": "x"}}, "b/evaluation.json: benchmarks.x: found no grader, expected evaluation.json"),
    ],
)
def test_other_problems_are_refused_in_one_line(tmp_path, capsys, change, message):
    a, b = _write(tmp_path / "a", x=_result([1, 0])), _write(tmp_path / "b", **change)
    assert compare.main([str(a), str(b)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


# ---- checkpoints


def test_what_a_checkpoint_may_be(tmp_path):
    (tmp_path / "run" / "hf").mkdir(parents=True)
    (tmp_path / "bare" / "checkpoints").mkdir(parents=True)
    (tmp_path / "run" / "hf" / "config.json").write_text("{}")
    assert hub_model_of(str(tmp_path / "run")) == str(tmp_path / "run" / "hf")
    assert hub_model_of(str(tmp_path / "run" / "hf")) == str(tmp_path / "run" / "hf")
    assert hub_model_of(str(tmp_path / "bare")) is None
    assert hub_model_of("owner/model") == "owner/model"
    assert hub_model_of("./nowhere") is None


def test_other_weights_have_another_fingerprint(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    weights = bytearray(300_000)
    found = []
    for place in (None, 10, 150_010, 299_999):
        if place is not None:
            weights[place] ^= 1
        (tmp_path / "model.safetensors").write_bytes(weights)
        found.append(fingerprint(tmp_path))
    assert len(set(found)) == 4
