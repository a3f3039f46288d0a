"""A real Slurm on this machine for the tests: local_slurm.sh with ports and a folder of its own, and jobs to wait for."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).parent
REPOSITORY = HERE.parents[1]
NODES, GPUS = 8, 8
"""What slurm/amft_math.sh asks for. They are declared, and need not exist."""
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")

SMALL = (
    "--config-name", "quickstart", "rollout=megatron", "rollout.max_new_tokens=8", "reward.workers=1",
    "model.scratch.hidden_size=32", "model.scratch.intermediate_size=64", "model.scratch.num_hidden_layers=2",
    "model.scratch.num_attention_heads=2", "model.scratch.num_key_value_heads=2",
    "task.num_train=128", "task.num_validation=16", "task.num_test=16", "task.worked_steps=false", "task.modulus=2",
    "warmup.steps=4", "warmup.demonstrations_per_step=8", "warmup.target_entropy_batches=1",
    "data.prompts_per_step=4", "data.samples_per_prompt=2", "data.demonstrations_per_step=4",
    "controller.meta_every=2", "controller.meta_gradient.val_prompts=4", "controller.meta_gradient.val_samples=2",
    "validation.prompts=8", "validation.final_prompts=8", "trainer.max_steps=5",
    "checkpoint.every=2", "checkpoint.export_hf=false",
)  # fmt: skip
"""The quickstart in a few seconds, apart from its imports."""


def lacks() -> str | None:
    """Why there can be no Slurm here, or None."""
    if os.geteuid() != 0:
        return "a local Slurm with several nodes needs root"
    missing = [name for name in ("slurmctld", "slurmd", "munged", "sbatch") if shutil.which(name, path=_path()) is None]
    return f"{', '.join(missing)}: not installed (tests/slurm/local_slurm.sh install)" if missing else None


def container_plugin(folder: Path) -> Path | None:
    """Build the stand-in for pyxis, where a compiler and Slurm's headers are at hand. Returns its plugstack.conf."""
    plugin, plugstack = folder / "spank_container.so", folder / "plugstack.conf"
    try:
        subprocess.run(["gcc", "-shared", "-fPIC", "-o", plugin, HERE / "spank_container.c"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    plugstack.write_text(f"required {plugin}\n")
    return plugstack


@dataclass
class Job:
    """A submitted job."""

    cluster: Cluster
    id: str
    log_path: Path

    def fields(self) -> dict[str, str]:
        """What `scontrol show job` says."""
        return dict(re.findall(r"(\w+)=(\S*)", self.cluster.call("scontrol", "show", "job", self.id)))

    @property
    def state(self) -> str:
        return self.fields()["JobState"]

    @property
    def log(self) -> str:
        return self.log_path.read_text() if self.log_path.exists() else ""

    def wait(self, timeout: float = 280) -> str:
        """Wait until the job has ended and return its state."""
        return self.until(lambda: self.state in ENDED and self.state, "its end", timeout)

    def until(self, reached: Callable[[], object], what: str, timeout: float = 280):
        """Wait until `reached()` is true and return its value. Fails with the log at the deadline."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            if value := reached():
                return value
            time.sleep(0.1)
        raise AssertionError(f"job {self.id} has not reached {what} within {timeout} s:\n{self.fields()}\n{self.log}")

    def exit_status(self) -> int:
        return int(self.fields()["ExitCode"].partition(":")[0])


@dataclass
class Cluster:
    """A running Slurm."""

    folder: Path
    plugstack: Path | None
    settings: dict[str, str] = field(default_factory=dict)

    def start(self) -> None:
        first_port = _free_ports(NODES + 2)
        self.settings = {
            "LOCAL_SLURM_DIR": str(self.folder / "slurm"), "LOCAL_SLURM_NODES": str(NODES), "LOCAL_SLURM_GPUS": str(GPUS),
            "LOCAL_SLURM_CPUS": "16", "LOCAL_SLURM_CTLD_PORT": str(first_port), "LOCAL_SLURM_NODE_PORT": str(first_port + 1),
            "LOCAL_SLURM_PRIVATE": str(self.private), "SLURM_CONF": str(self.folder / "slurm" / "slurm.conf"),
            **({"LOCAL_SLURM_PLUGSTACK": str(self.plugstack)} if self.plugstack else {}),
        }  # fmt: skip
        self.local_slurm("start")

    @property
    def private(self) -> Path:
        """A folder of which every node has its own."""
        return self.folder / "private"

    def local_slurm(self, *arguments: str) -> None:
        done = subprocess.run(
            ["bash", HERE / "local_slurm.sh", *arguments], env=self.environment(), stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout

    def environment(self) -> dict[str, str]:
        # A Slurm job that these tests themselves run in must not show through.
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "SBATCH"))}
        return {**inherited, "PATH": _path(), "OMP_NUM_THREADS": "1", **self.settings}

    def call(self, *command: str | Path, check: bool = True, **environment: str) -> str:
        """Run a command against this Slurm and return its output."""
        done = subprocess.run(
            command, env=self.environment() | environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            cwd=REPOSITORY, restore_signals=False,  # with SIGPIPE ignored, as here, Slurm's commands try again by themselves
        )  # fmt: skip
        assert done.returncode == 0 or not check, f"{command} ended with {done.returncode}: {done.stdout}"
        return done.stdout

    def submit(
        self, script: str, *arguments: str, nodes: int = 2, tasks: int = 1, options: tuple[str, ...] = (), **environment: str
    ) -> Job:
        """sbatch slurm/`script` with `arguments`, over `nodes` x `tasks` processes."""
        size = (f"--nodes={nodes}", f"--ntasks-per-node={tasks}", f"--gpus-per-node={tasks}")
        output = self.folder / "%j.log"
        found = self.call(
            "sbatch", "--parsable", *size, f"--output={output}", *options, f"slurm/{script}", *arguments, **environment
        )
        number = found.strip().splitlines()[-1]
        return Job(self, number, self.folder / f"{number}.log")


def start() -> Cluster:
    folder = Path(tempfile.mkdtemp(prefix="amft-slurm-"))  # short: munge's socket lies below it
    folder.chmod(0o755)
    cluster = Cluster(folder, container_plugin(folder))
    try:
        cluster.start()
    except BaseException:
        stop(cluster)
        raise
    return cluster


def stop(cluster: Cluster) -> None:
    cluster.local_slurm("stop")
    shutil.rmtree(cluster.folder, ignore_errors=True)


def _path() -> str:
    return f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"


def _free_ports(count: int) -> int:
    """The first of `count` neighbouring ports that nobody listens on."""
    for first in range(16800 + os.getpid() % 1000 * 12, 32000, count):
        with _Ports(first, count) as free:
            if free:
                return first
    raise AssertionError("no free ports")


class _Ports:
    def __init__(self, first: int, count: int) -> None:
        self._range, self._sockets = range(first, first + count), []

    def __enter__(self) -> bool:
        try:
            for port in self._range:
                self._sockets.append(socket.create_server(("127.0.0.1", port)))
        except OSError:
            return False
        return True

    def __exit__(self, *exc: object) -> None:
        for listener in self._sockets:
            listener.close()
