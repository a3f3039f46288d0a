"""Checks this project on a machine with one GPU, in under ten minutes: `python benchmarks/gpu_check.py [--wheels DIR]`.

It runs the GPU tests, compares the quickstart's losses in fp32 with the CPU's, and measures AMFT steps in bf16 at the shapes of
Qwen2 0.5B and 1.5B: FLOP/s against the card's own best matrix product, what meta-updates cost, tokens/s of decoding, and peak
memory against the plan. Nothing is downloaded and no vLLM is needed. Without a GPU everything runs at reduced size, and the
losses found become the reference: results/gpu_check_cpu.json. Exit status 1 if anything failed. See docs/gpu_check.md.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent
PARTS = {"tests": 240, "quickstart": 150, "step 0.5B": 120, "step 1.5B": 150, "decode 0.5B": 120}
"""The parts of gpu_parts.py, and seconds each may take."""
WHOLE = 570
"""Seconds for everything."""
PATIENCE = 4
"""Times as long on a CPU, which others may be using."""
INSTALLED = "GPU_CHECK_WHEELS_INSTALLED"
"""Set in the program that `--wheels` starts."""


def with_wheels(folder: str) -> None:
    """Install the wheels of `folder` beside the machine's own packages and start again with them in sight."""
    target = tempfile.mkdtemp(prefix="gpu_check_")
    wheels = sorted(map(str, Path(folder).glob("*.whl")))
    if not wheels:
        sys.exit(f"gpu_check: error: --wheels {folder}: found no .whl file, expected those of benchmarks/gpu_wheels.sh")
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-deps", "--no-compile", "--target", target]
    status = 1
    try:
        subprocess.run([*pip, *wheels], check=True)
        path = os.pathsep.join(filter(None, [target, str(ROOT), os.environ.get("PYTHONPATH")]))
        environment = os.environ | {"PYTHONPATH": path, INSTALLED: "1"}
        status = subprocess.run([sys.executable, *sys.argv], env=environment).returncode
    finally:
        shutil.rmtree(target, ignore_errors=True)
    sys.exit(status)


def run_part(name: str, seconds: float) -> dict:
    """Rows of one part, from a process of its own: a fault on the device takes no other part with it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {key: value for key, value in os.environ.items() if key not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    environment |= {"MASTER_PORT": str(port), "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    environment.setdefault("OMP_NUM_THREADS", "1")
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "rows.json"
        log = Path(folder) / "log"
        started = time.monotonic()
        with log.open("w") as written:
            process = subprocess.Popen(
                [sys.executable, "-W", "ignore", __file__, "--part", name, "--part-out", str(out)],
                stdout=written, stderr=subprocess.STDOUT, env=environment, cwd=ROOT, start_new_session=True,
            )  # fmt: skip
            try:
                process.wait(seconds)
                fault = f"exit status {process.returncode}" if process.returncode else None
            except subprocess.TimeoutExpired:
                fault = f"not finished after {seconds:.0f} s"
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, 9)
                    process.wait()
        found = json.loads(out.read_text()) if out.exists() else {"rows": [], "record": None}
        if fault is not None:
            print(f"--- {name}: {fault}\n{log.read_text()[-4000:]}", file=sys.stderr)
            found["rows"].append({"part": name, "name": "ran to its end", "value": fault, "unit": "", "status": "FAIL"})
        elif any(row["status"] == "FAIL" for row in found["rows"]):
            print(f"--- {name}\n{log.read_text()[-4000:]}", file=sys.stderr)
        return found | {"seconds": time.monotonic() - started}


def show(row: dict) -> None:
    value = f"{row['value']:.4g}" if isinstance(row["value"], float) else str(row["value"])
    print(f"{row['status']:<7}{row['part']:<28}{row['name']:<64}{value:>12} {row['unit']}", flush=True)


def reference() -> dict | None:
    """The losses that a CPU recorded, as committed."""
    path = HERE / "results" / "gpu_check_cpu.json"
    return json.loads(path.read_text())["records"]["quickstart"] if path.exists() else None


def device_name() -> str:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wheels", metavar="DIR", help="install the wheels in DIR first, to a temporary folder")
    parser.add_argument("--out", metavar="DIR", help="also copy the JSON there")
    parser.add_argument("--only", nargs="+", choices=PARTS, help="these parts; nothing is recorded")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    parser.add_argument("--part-out", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.wheels and INSTALLED not in os.environ:
        with_wheels(options.wheels)
    sys.path[:0] = [str(HERE), str(ROOT)]
    device = device_name()
    if options.part:
        import gpu_parts

        rows, record = gpu_parts.PARTS[options.part](None if device == "cpu" else reference())
        Path(options.part_out).write_text(json.dumps({"rows": [vars(row) for row in rows], "record": record}))
        return
    if device != "cpu" and reference() is None:
        sys.exit("gpu_check: error: benchmarks/results/gpu_check_cpu.json is missing: run this on a CPU first")
    patience = PATIENCE if device == "cpu" else 1
    started, rows, records, seconds = time.monotonic(), [], {}, {}
    print(f"device: {device}", flush=True)
    for name in options.only or PARTS:
        left = patience * WHOLE - (time.monotonic() - started)
        found = run_part(name, max(5.0, min(patience * PARTS[name], left)))
        for row in found["rows"]:
            show(row)
        rows += found["rows"]
        seconds[name] = found["seconds"]
        if found["record"] is not None:
            records[name] = found["record"]
    failed = [row for row in rows if row["status"] == "FAIL"]
    print(f"{len(failed)} failed, {sum(r['status'] == 'PASS' for r in rows)} passed; {time.monotonic() - started:.0f} s")
    if not options.only and not (failed and device == "cpu"):  # a reference is whole
        from common import write_result

        slug = re.sub(r"[^a-z0-9]+", "_", device.lower()).strip("_")
        path = write_result(f"gpu_check_{slug}", {"device": device, "rows": rows, "records": records, "seconds": seconds})
        print(path)
        if options.out:
            shutil.copy(path, options.out)
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
