"""Rollouts by KV-cache decoding on the policy itself: no second copy of the weights, nothing to sync."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.inference.contexts import StaticInferenceContext
from megatron.core.transformer.utils import set_model_to_sequence_parallel
from tokenizers import Tokenizer
from torch import Tensor

from nemo_amft.config.schema import RolloutConfig
from nemo_amft.models.hub_weights import unwrap
from nemo_amft.parallel import platform
from nemo_amft.rollout.gather import gather_completions
from nemo_amft.rollout.limits import check_lengths
from nemo_amft.rollout.sampling import sample, uniforms
from nemo_amft.rollout.shares import shares
from nemo_amft.rollout.stopping import StopStrings
from nemo_amft.types import Completion, Request, SamplingParams, UserError


class MegatronEngine:
    """Each data-parallel replica decodes its share of the requests in batches, on its tensor-parallel ranks.

    Prompts of a batch may differ in length. As in Megatron's own static engine, positions are shared: the batch is prefilled up
    to its shortest prompt and then steps, the longer prompts' tokens being forced. Batches hold prompts of similar length.
    """

    def __init__(
        self,
        chunks: Sequence[torch.nn.Module],
        rollout: RolloutConfig,
        vocab_size: int,
        max_sequence_length: int,
        tokenizer: Tokenizer | None = None,
    ):
        """Take the policy as it is; nothing is copied or allocated.

        Args:
            chunks: this rank's part of the policy, bare or wrapped in DistributedDataParallel.
            vocab_size: ids of the tokenizer; columns beyond them only pad the output layer.
            max_sequence_length: most tokens of prompt and response together.
            tokenizer: what reads responses for stop strings; not needed without any.

        Raises:
            UserError: the layout has pipeline or context parallelism.
        """
        for key, size in (
            ("model.pipeline_model_parallel_size", parallel_state.get_pipeline_model_parallel_world_size()),
            ("model.context_parallel_size", parallel_state.get_context_parallel_world_size()),
        ):
            if size > 1:
                raise UserError(f"{key}: found {size}, expected 1 with rollout.engine=megatron (vllm takes any layout)")
        (self._chunk,) = chunks
        self._model = unwrap(self._chunk)
        self._max_num_seqs = rollout.max_num_seqs
        self._vocab_size = vocab_size
        self._max_sequence_length = max_sequence_length
        self._tokenizer = tokenizer

    def generate(self, requests: Sequence[Request], params: SamplingParams) -> list[Completion]:
        """See `RolloutEngine.generate`.

        Raises:
            UserError: a prompt is too long for `max_sequence_length`.
        """
        check_lengths(requests, params, self._max_sequence_length, "the sequence length the engine was built for")
        # Of one generator, on every rank: a request without a seed is drawn alike by the ranks that share it.
        fresh = torch.Generator().manual_seed(params.seed)
        seeds = [int(torch.randint(2**62, (), generator=fresh)) if r.seed is None else r.seed for r in requests]
        data_rank, data_size = parallel_state.get_data_parallel_rank(), parallel_state.get_data_parallel_world_size()
        own = shares(requests, data_size, params.max_new_tokens)[data_rank]
        drawn: dict[int, Completion] = {}
        with self._decoding(), torch.no_grad():
            # Longest first: should memory not suffice, it shows at once. Samples of one prompt stay together.
            order = sorted(own, key=lambda i: (len(requests[i].prompt_token_ids), requests[i].prompt_token_ids), reverse=True)
            for start in range(0, len(order), self._max_num_seqs):
                batch = order[start : start + self._max_num_seqs]
                prompts = [requests[i].prompt_token_ids for i in batch]
                drawn |= zip(batch, self._decode(prompts, [seeds[i] for i in batch], params), strict=True)
        # Tensor-parallel ranks hold copies of the same result.
        return gather_completions([drawn[i] for i in own], parallel_state.get_data_parallel_group_gloo())

    def update_weights(self) -> None:
        """Nothing to do: the weights are the policy's own, and no cache outlives a batch."""

    def wake(self) -> None:
        """Nothing to do: the cache is allocated per batch."""

    def sleep(self) -> None:
        """Nothing to do: the cache is gone when `generate` returns."""

    def close(self) -> None:
        """Nothing to do."""

    @contextlib.contextmanager
    def _decoding(self) -> Iterator[None]:
        """The policy ready to decode; as it was, afterwards."""
        ddp_config = getattr(self._chunk, "ddp_config", None)
        if ddp_config is not None and ddp_config.overlap_param_gather:
            # The last step's gather may be under way or not begun. Hooks of the next forward pass would finish it, which every
            # data-parallel rank must run; one without a share runs none.
            with platform.megatron():
                self._chunk.start_param_sync(force_sync=True)
        training, sequence_parallel = self._chunk.training, self._model.config.sequence_parallel
        self._chunk.eval()
        if sequence_parallel:
            set_model_to_sequence_parallel(self._model, False)  # one position cannot be split over ranks
        try:
            with platform.outside_megatron():
                yield
        finally:
            if sequence_parallel:
                set_model_to_sequence_parallel(self._model, True)
            self._chunk.train(training)

    def _decode(self, prompts: Sequence[Sequence[int]], seeds: Sequence[int], params: SamplingParams) -> list[Completion]:
        """One completion a prompt, the batch decoded together. B shrinks when half of it has finished."""
        watchers = [StopStrings(self._tokenizer, prompt, params.stop) for prompt in prompts] if params.stop else []
        batch = _Batch(prompts, uniforms(seeds, params.max_new_tokens), params, watchers)
        longest = max(map(len, prompts)) + params.max_new_tokens
        context = StaticInferenceContext(len(prompts), longest)
        position_ids = torch.arange(longest, device=platform.device())[None]
        start, stop = 0, min(map(len, prompts))
        while True:
            logits_BV = self._model(
                batch.tokens[:, start:stop],
                position_ids[:, start:stop].expand(len(batch.rows), -1),
                None,  # causal within the prefill; a decoded token sees all that is cached
                inference_context=context,
                runtime_gather_output=True,
            )[:, -1, : self._vocab_size]
            batch.append(logits_BV, stop)
            if not batch.num_live:
                return batch.completions()
            if 2 * batch.num_live <= len(batch.rows):
                _shrink(context, batch.drop_finished())
            context.sequence_len_offset = start = stop
            context.enable_decode_mode()
            stop += 1


def _shrink(context: StaticInferenceContext, keep: Tensor) -> None:
    """Keep only the cache of the sequences `keep` (indices into the batch)."""
    for layer, (keys, values) in context.key_value_memory_dict.items():
        context.key_value_memory_dict[layer] = (keys[:, keep], values[:, keep])


class _Batch:
    """Sequences that are decoded together: row b is sequence `rows[b]` of the batch as it was at the start."""

    def __init__(
        self, prompts: Sequence[Sequence[int]], uniform: Tensor, params: SamplingParams, watchers: Sequence[StopStrings]
    ):
        """`watchers`: one a prompt; none without stop strings."""
        device = platform.device()
        self._params = params
        self._watchers = watchers
        self._lengths = [len(prompt) for prompt in prompts]
        size, longest = len(prompts), max(self._lengths) + params.max_new_tokens
        self._all_tokens = torch.zeros(size, longest, dtype=torch.int64)
        for row, prompt in zip(self._all_tokens, prompts, strict=True):
            row[: len(prompt)] = torch.tensor(prompt)
        self._all_tokens = self._all_tokens.to(device)
        self._all_log_probs = torch.zeros(size, longest, device=device)
        self._ends = torch.zeros(size, dtype=torch.int64, device=device)
        self._stopped = torch.zeros(size, dtype=torch.bool, device=device)
        self._uniform = uniform.to(device)
        self._stops = torch.tensor(params.stop_token_ids, dtype=torch.int64, device=device)
        self._tensor_group = parallel_state.get_tensor_model_parallel_group()
        self.rows = torch.arange(size, device=device)
        self.tokens = self._all_tokens
        self._prompt_ends = torch.tensor(self._lengths, device=device)
        self._live = torch.ones(size, dtype=torch.bool, device=device)
        self.num_live = size

    def append(self, logits_BV: Tensor, position: int) -> None:
        """Write the token at `position`: drawn, or forced where the prompt is longer."""
        written_B = position - self._prompt_ends[self.rows]
        uniform_B = self._uniform[self.rows, written_B.clamp(0, self._params.max_new_tokens - 1)]
        token_B, log_prob_BV = sample(logits_BV, uniform_B, self._params)
        if self._tensor_group.size() > 1:
            # Each rank has drawn from the same gathered logits, but one differing bit would have them run apart for good.
            dist.broadcast(token_B, group_src=0, group=self._tensor_group)
        log_prob_B = log_prob_BV.gather(-1, token_B[:, None])[:, 0]
        drawn_B = self._live & (written_B >= 0)
        token_B = torch.where(drawn_B, token_B, self.tokens[:, position])
        self.tokens[:, position] = token_B
        self._all_tokens[self.rows, position] = token_B
        self._all_log_probs[self.rows, position] = log_prob_B.where(drawn_B, 0.0)
        stopped_B = drawn_B & (torch.isin(token_B, self._stops) | self._completes_a_string(token_B, drawn_B))
        ended_B = stopped_B | (drawn_B & (written_B == self._params.max_new_tokens - 1))
        self._ends[self.rows] = torch.where(ended_B, position + 1, self._ends[self.rows])
        self._stopped[self.rows] |= stopped_B
        self._live &= ~ended_B
        self.num_live = int(self._live.sum())

    def _completes_a_string(self, token_B: Tensor, drawn_B: Tensor) -> Tensor:
        """Which of the drawn tokens complete a stop string."""
        if not self._watchers:
            return torch.zeros_like(drawn_B)
        rows = zip(self.rows.tolist(), token_B.tolist(), drawn_B.tolist(), strict=True)
        found = [drawn and self._watchers[row].completed_by(token) for row, token, drawn in rows]
        return torch.tensor(found, device=drawn_B.device)

    def drop_finished(self) -> Tensor:
        """Keep only live sequences; returns their indices into the batch as it was."""
        keep = self._live.nonzero()[:, 0]
        self.rows, self.tokens, self._live = self.rows[keep], self.tokens[keep], self._live[keep]
        return keep

    def completions(self) -> list[Completion]:
        """What was drawn, in the order of the prompts."""
        tokens, log_probs = self._all_tokens.cpu(), self._all_log_probs.cpu()
        ends, all_stopped = self._ends.tolist(), self._stopped.tolist()
        found = []
        for row, (start, end, stopped) in enumerate(zip(self._lengths, ends, all_stopped, strict=True)):
            ids = tuple(tokens[row, start:end].tolist())
            found.append(Completion(ids, tuple(log_probs[row, start:end].tolist()), stopped))
        return found
