"""vLLM's CPU worker with a shared-memory name of its own. Imported by vLLM, by name."""

from __future__ import annotations

from vllm.v1.worker.cpu_worker import CPUWorker as _CPUWorker


class CPUWorker(_CPUWorker):
    """Under the external launcher, vLLM 0.32 names the shared memory of every tensor-parallel CPU engine on a machine alike: a second
    job, or one after a crash, fails with "create shm in SHMManager failed". The name is made from the rendezvous address,
    which is otherwise unused here: the process group is there already."""

    def init_device(self) -> None:
        """Initialise as vLLM does, under this job's name."""
        self.distributed_init_method = f"env:{self.vllm_config.additional_config['shared_memory_name']}"
        super().init_device()
