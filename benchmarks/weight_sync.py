"""Weight sync against copying the same bytes: `python benchmarks/weight_sync.py`, some two minutes.

A policy of about SmolLM2-135M's size on one process, and pipeline or tensor parallel on two with an engine in each; a thread a
process. Timed in turn: every tensor of the model copied to memory that is there already; the policy's tensors put together
(`export_hub_weights`) in buckets and one parameter at a time; the whole sync (`update_weights`), with the share of it that vLLM
takes to pack its copies for a CPU's matrix products, which a GPU does not do; and vLLM's own `reload_weights`. What counts is
the median over rounds of each over that round's copy.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from common import write_result
from shapes import SHAPES, small_qwen2

from nemo_amft.config.schema import ModelConfig, RolloutConfig
from nemo_amft.models.builder import build_policy
from nemo_amft.models.hub_files import ARCHITECTURES
from nemo_amft.models.hub_weights import export_hub_weights
from nemo_amft.parallel import groups, platform
from nemo_amft.rollout import vllm_weights
from nemo_amft.rollout.vllm import VLLMEngine

SMOL, EVEN = SHAPES["SmolLM2-135M"], small_qwen2(512, 24, 49152)  # nine heads are no number for two ranks
LAYOUTS = {
    "one process, fp32": (SMOL, ModelConfig(), "32"),
    "one process, bf16": (SMOL, ModelConfig(), "bf16"),
    "PP2 to two engines, fp32": (SMOL, ModelConfig(pipeline_model_parallel_size=2), "32"),
    "TP2 to two engines, fp32": (EVEN, ModelConfig(tensor_model_parallel_size=2), "32"),
}
ROWS = {
    "copy": "copy of the same bytes",
    "export": "policy's tensors put together, in buckets of 256 MiB",
    "export, small": "policy's tensors put together, in buckets of 32 MiB",
    "export one by one": "policy's tensors put together, one parameter at a time",
    "sync": "weight sync",
    "packing": "  of it: vLLM packs for the CPU",
    "rest": "  of it: all else",
    "reload": "vLLM's own reload_weights, from the same tensors",
}


def measure(layout: str, rounds: int) -> dict[str, list[float]]:
    """Seconds of each row, by round, of the slowest rank."""
    hub_config, model, precision = LAYOUTS[layout]
    groups.initialize(model, seed=1)
    with platform.megatron():
        chunks = build_policy(hub_config, model, precision)
    with tempfile.TemporaryDirectory() as folder:
        hub_config.architectures = [ARCHITECTURES[hub_config.model_type]]
        hub_config.save_pretrained(folder)
        rollout = RolloutConfig(max_num_seqs=8, kv_cache_gb=0.25)
        engine = VLLMEngine(folder, rollout, precision, 512, lambda: export_hub_weights(chunks, hub_config))
    engine.wake()
    source = [tensor.clone() for _, tensor in export_hub_weights(chunks, hub_config)]
    target = [torch.zeros_like(tensor) for tensor in source]
    packing = timed_packing()

    def copy() -> None:
        for into, tensor in zip(target, source, strict=True):
            into.copy_(tensor)

    def export(bucket_bytes: int) -> Callable[[], None]:
        def run() -> None:
            for _ in export_hub_weights(chunks, hub_config, bucket_bytes):
                pass

        return run

    def reload() -> None:
        weights = export_hub_weights(chunks, hub_config)
        engine._llm.collective_rpc("reload_weights", kwargs={"weights_iterator": weights, "is_checkpoint_format": True})

    works = {
        "copy": copy,
        "export": export(2**28),
        "export, small": export(2**25),
        "export one by one": export(1),
        "sync": engine.update_weights,
    }
    found = {name: [] for name in ROWS}
    for turn in range(rounds + 1):
        for name, work in works.items():
            packing.clear()
            seconds = slowest(work)
            if turn:  # the first is for warming up
                found[name].append(seconds)
                if name == "sync":
                    packed = sum(packing)
                    found["packing"].append(packed)
                    found["rest"].append(seconds - packed)
    for turn in range(rounds + 1):  # last: it leaves the output layer unpacked
        seconds = slowest(reload)
        if turn:
            found["reload"].append(seconds)
    engine.close()
    return found | {"bytes": sum(tensor.nbytes for tensor in source)}


def timed_packing() -> list[float]:
    """Seconds of each call that packs a layer, from now on."""
    seconds: list[float] = []
    pack = vllm_weights._pack

    def timed(layer: torch.nn.Module) -> None:
        start = time.perf_counter()
        pack(layer)
        seconds.append(time.perf_counter() - start)

    vllm_weights._pack = timed
    return seconds


def slowest(work: Callable[[], None]) -> float:
    """Seconds that `work` takes the slowest rank."""
    dist.barrier()
    start = time.perf_counter()
    work()
    seconds = torch.tensor(time.perf_counter() - start, dtype=torch.float64)
    dist.all_reduce(seconds, dist.ReduceOp.MAX)
    return seconds.item()


def launch(layout: str, rounds: int) -> dict:
    """`measure` on as many processes of a thread each as the layout has. Raises RuntimeError with the end of their output."""
    model = LAYOUTS[layout][1]
    ranks = model.tensor_model_parallel_size * model.pipeline_model_parallel_size
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "found.json"
        command = [
            sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks),
            __file__, "--rounds", str(rounds), "--rank-of", str(path), "--layout", layout,
        ]  # fmt: skip
        done = subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, stderr=subprocess.PIPE, text=True)
        if done.returncode:
            raise RuntimeError(f"{layout}: {done.stderr[-3000:]}")
        return json.loads(path.read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--layout", help=argparse.SUPPRESS)
    parser.add_argument("--rank-of", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rank_of:
        found = measure(options.layout, options.rounds)
        if dist.get_rank() == 0:
            Path(options.rank_of).write_text(json.dumps(found))
        groups.shutdown()
        return
    result = {}
    for layout in LAYOUTS:
        found = launch(layout, options.rounds)
        size = found.pop("bytes")
        result[layout] = {"MB": size / 1e6, "seconds": found, "over_copy": {}}
        print(f"{layout}, {size / 1e6:.0f} MB\n{'':<58}{'ms':>8}{'GB/s':>8}{'/ copy':>8}")
        for key, label in ROWS.items():
            ratio = statistics.median(a / b for a, b in zip(found[key], found["copy"], strict=True))
            result[layout]["over_copy"][key] = ratio
            middle = statistics.median(found[key])
            print(f"{label:<58}{1e3 * middle:8.1f}{size / middle / 1e9:8.1f}{ratio:8.2f}", flush=True)
    print(write_result("weight_sync", {"rounds": options.rounds, "layouts": result}))


if __name__ == "__main__":
    main()
