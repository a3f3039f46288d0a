"""Rollouts by vLLM inside the training processes: no server, no second job, weights replaced in place.

vLLM's external launcher builds on the torch.distributed world that is there: `rollout.tensor_model_parallel_size`
consecutive ranks form one engine, and a world of several times that many has several engines side by side that never speak
to each other. Each rank of an engine runs the same scheduler over the same requests; they stay in step because all they
decide on is equal.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch.distributed as dist
from torch import Tensor

from nemo_amft.config.schema import RolloutConfig
from nemo_amft.parallel import platform
from nemo_amft.rollout import vllm_process, vllm_vocabulary, vllm_weights
from nemo_amft.rollout.gather import gather_completions
from nemo_amft.rollout.limits import check_lengths
from nemo_amft.rollout.shares import shares
from nemo_amft.types import Completion, Request, SamplingParams, UserError

if TYPE_CHECKING:
    import vllm
    from transformers import PreTrainedTokenizerBase

Weights = Callable[[], Iterator[tuple[str, Tensor]]] | None


class VLLMEngine:
    """Colocated vLLM. Construct and use outside `platform.megatron()`.

    On a GPU the engine sleeps between phases without weights and cache (vLLM's level 2), and waking loads the policy's weights
    anew; on a CPU `sleep` and `wake` do nothing.

    Log-probs are of the distribution that was sampled from, temperature included. vLLM takes them either after truncation or
    before the temperature: with rollout.top_p or rollout.top_k it is the latter, so they are `Completion.log_probs` at
    temperature 1 only.

    Without `weights` it is a hub model that no policy stands behind, such as one that sees: its weights are the folder's, and
    it never sleeps.
    """

    def __init__(
        self,
        model_folder: Path | str,
        rollout: RolloutConfig,
        precision: str,
        max_model_len: int,
        weights: Weights,
        vocab_size: int,
        images: int = 0,
        tokenizer: PreTrainedTokenizerBase | None = None,
    ):
        """Start the engine, asleep. Takes seconds, most of them for importing vLLM.

        Args:
            model_folder: config.json of the model, in hub format; weights and tokenizer there are read only without `weights`.
            precision: "32" or "bf16".
            max_model_len: most tokens of prompt and response together.
            vocab_size: ids of the tokenizer; rows that the model's head has beyond them are never drawn, and no log-prob counts
                them.
            weights: begins a pass over the policy's (hub name, whole tensor); collective, and run through by every rank.
            images: most images of a request. The model is then one that sees.
            tokenizer: what reads responses for stop strings; not needed without any.

        Raises:
            UserError: vLLM cannot run this model or configuration; its own reason is in the message.
        """
        size, world = rollout.tensor_model_parallel_size, dist.get_world_size()
        if world % size:
            raise UserError(f"rollout.tensor_model_parallel_size: found {size}, expected a divisor of the {world} ranks")
        self._engine, self._engine_rank = divmod(dist.get_rank(), size)
        self._num_engines = world // size
        self._max_model_len = max_model_len
        self._weights = weights
        self._asleep = False
        self._images = images
        self._vocab_size = vocab_size
        self._llm = self._start(str(model_folder), rollout, precision)
        if tokenizer is not None:
            vllm_process.read_responses_with(self._llm, tokenizer)
        if not platform.is_gpu():
            self.update_weights()
        self.sleep()

    def _start(self, model_folder: str, rollout: RolloutConfig, precision: str) -> vllm.LLM:
        vllm_process.set_environment()
        with vllm_process.undisturbed():
            import vllm

            vllm_process.keep_process_groups()
            vllm_process.name_device()
            try:
                llm = vllm.LLM(
                    model_folder,
                    dtype="bfloat16" if precision == "bf16" else "float32",
                    load_format="dummy" if self._weights is not None else "auto",  # the policy's weights follow at once
                    skip_tokenizer_init=self._weights is not None,  # what makes tokens of images asks the tokenizer
                    limit_mm_per_prompt={"image": self._images} if self._images else {},
                    generation_config="vllm",  # no sampling defaults from the model's folder
                    tensor_parallel_size=rollout.tensor_model_parallel_size,
                    distributed_executor_backend="external_launcher",
                    disable_custom_all_reduce=True,  # its buffers do not survive sleep
                    max_model_len=self._max_model_len,
                    max_num_seqs=rollout.max_num_seqs,
                    enable_prefix_caching=True,
                    logprobs_mode=_logprobs_mode(rollout),
                    **_platform_arguments(rollout, self._weights is not None),
                )
            except (ValueError, NotImplementedError) as error:
                memory = "gpu_memory_utilization" if platform.is_gpu() else "kv_cache_gb"
                raise UserError(
                    f"vLLM cannot run {model_folder} with sequences of {self._max_model_len} tokens and "
                    f"rollout.{memory}={getattr(rollout, memory)}: {_reason(error)}"
                ) from error
            vllm_process.check_head_size(llm.model_config.get_head_size())
            llm.collective_rpc(vllm_vocabulary.limit, args=(self._vocab_size,))
            return llm

    def generate(self, requests: Sequence[Request], params: SamplingParams) -> list[Completion]:
        """See `RolloutEngine.generate`.

        Raises:
            UserError: a prompt is too long for `max_model_len`.
        """
        check_lengths(requests, params, self._max_model_len, "max_model_len")
        assert not self._asleep, "wake() first"
        own = shares(requests, self._num_engines, params.max_new_tokens)[self._engine]
        completions: list[Completion] = []
        if own:
            with vllm_process.seeded(params.seed + self._engine):
                outputs = self._drawn([requests[i] for i in own], params)
            completions = [_completion(output.outputs[0]) for output in outputs]
        # All ranks of an engine hold the same; its first one speaks.
        return gather_completions(completions if self._engine_rank == 0 else [])

    def _drawn(self, requests: Sequence[Request], params: SamplingParams) -> list[vllm.RequestOutput]:
        sampling = [_sampling_params(request, params, self._vocab_size) for request in requests]
        if not self._images:
            return self._llm.generate([_prompt(request) for request in requests], sampling, use_tqdm=False)
        # How many tokens an image takes, vLLM alone knows. It refuses a prompt that is too long, and cuts a response to fit.
        from vllm.exceptions import VLLMValidationError

        room = self._max_model_len - params.max_new_tokens
        try:
            found = self._llm.generate([_prompt(request) for request in requests], sampling, use_tqdm=False)
        except VLLMValidationError as error:
            raise UserError(f"data.max_prompt_tokens: found {room}, too few for the images: {_reason(error)}") from error
        longest = max(len(output.prompt_token_ids or ()) for output in found)
        if longest > room:
            raise UserError(f"data.max_prompt_tokens: found {room}, too few for the images: a prompt has {longest} with them")
        return found

    def update_weights(self) -> None:
        """Load the policy's weights in place, tensor by tensor, and drop the prefix cache. Asleep on a GPU: `wake` will."""
        if self._weights is None or (self._asleep and platform.is_gpu()):
            return
        weights = self._weights()
        self._llm.collective_rpc(vllm_weights.load, args=(weights,))
        for _ in weights:  # whatever vLLM had no use for: the other ranks wait in these gathers
            pass
        self._llm.reset_prefix_cache()
        platform.synchronize()

    def wake(self) -> None:
        """Take device memory back: weights first, then the cache, so that loading has room. On a CPU only a change of state."""
        if self._asleep:
            self._asleep = False
            if platform.is_gpu() and self._weights is not None:
                self._llm.wake_up(tags=["weights"])
                self.update_weights()
                self._llm.wake_up(tags=["kv_cache"])

    def sleep(self) -> None:
        """Give the memory of weights and cache back to training."""
        if not self._asleep:
            self._asleep = True
            if platform.is_gpu() and self._weights is not None:
                self._llm.sleep(level=2)

    def close(self) -> None:
        """End the engine; training's process groups stand. Every rank calls it, or none."""
        self._llm.llm_engine.engine_core.shutdown()
        del self._llm


def _reason(error: Exception) -> str:
    """First sentence of vLLM's complaint; a pydantic error wraps it in several lines."""
    message = error.errors()[0]["msg"] if hasattr(error, "errors") else str(error)
    return " ".join(message.removeprefix("Value error, ").split()).split(". ")[0]


def _logprobs_mode(rollout: RolloutConfig) -> str:
    truncated = rollout.top_p < 1.0 or rollout.top_k > 0
    return "raw_logprobs" if truncated else "processed_logprobs"


def _platform_arguments(rollout: RolloutConfig, sleeps: bool) -> dict[str, Any]:
    """What differs between a CPU and a GPU."""
    if platform.is_gpu():
        return {
            "gpu_memory_utilization": rollout.gpu_memory_utilization,
            "enable_sleep_mode": sleeps,
            "enforce_eager": rollout.enforce_eager,
        }
    return {
        "kv_cache_memory_bytes": int(rollout.kv_cache_gb * 2**30),
        "enforce_eager": True,  # compiling takes minutes on a CPU
        # Where it cuts a prompt, vLLM 0.32 takes back the token that the first part drew; a CPU's generator cannot, and raises.
        "enable_chunked_prefill": False,
        "block_size": 32,  # the smallest its CPU kernels like: a prompt is shared in whole blocks, and its own choice is 128
        "worker_cls": "nemo_amft.rollout.vllm_cpu_worker.CPUWorker",
        "additional_config": {"shared_memory_name": vllm_process.job_name()},
    }


def _prompt(request: Request) -> dict[str, Any]:
    images = {"multi_modal_data": {"image": list(request.images)}} if request.images else {}
    return {"prompt_token_ids": list(request.prompt_token_ids), **images}


def _sampling_params(request: Request, params: SamplingParams, vocab_size: int) -> vllm.SamplingParams:
    import vllm

    return vllm.SamplingParams(
        max_tokens=params.max_new_tokens,
        temperature=params.temperature,
        top_p=params.top_p,
        top_k=params.top_k if params.top_k < vocab_size else 0,  # vLLM compares it with all rows, and indexes out of range
        seed=request.seed,
        stop_token_ids=list(params.stop_token_ids),
        stop=list(params.stop),
        ignore_eos=True,  # what ends a response is in stop_token_ids and stop, nothing else
        detokenize=bool(params.stop),
        skip_special_tokens=False,
        logprobs=0,  # the drawn token's own
        flat_logprobs=True,
    )


def _completion(output: vllm.CompletionOutput) -> Completion:
    """From one output. Position i of its flat log-probs starts with the drawn token's."""
    log_probs = output.logprobs
    return Completion(
        token_ids=tuple(output.token_ids),
        log_probs=tuple(log_probs.logprobs[start] for start in log_probs.start_indices),
        finished=output.finish_reason == "stop",
    )
