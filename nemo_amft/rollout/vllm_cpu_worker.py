"""vLLM's CPU worker with shared memory of its own. Imported by vLLM, by name."""

from __future__ import annotations

from pathlib import Path

from vllm.v1.worker.cpu_worker import CPUWorker as _CPUWorker


class CPUWorker(_CPUWorker):
    """Keeps the tensor-parallel CPU engines of several jobs on a machine apart.

    Under the external launcher, vLLM 0.32 gives the shared memory of all of them one name: a second job, or one after a crash,
    fails with "create shm in SHMManager failed".
    """

    def init_device(self) -> None:
        """Initialise as vLLM does, under this job's name, and leave nothing behind in /dev/shm."""
        name = self.vllm_config.additional_config["shared_memory_name"]
        # vLLM makes the name from the rendezvous address, which is not used: the process group is there already.
        self.distributed_init_method = f"env:{name}"
        super().init_device()
        for file in Path("/dev/shm").glob(f"{name}-*"):
            file.unlink(missing_ok=True)  # every rank has mapped it by now; without a name it cannot outlive the job
