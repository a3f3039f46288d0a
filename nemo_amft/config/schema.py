"""The typed schema of everything under conf/. A key exists once, here, with its default and one line of documentation.

Plug-in sections (`method`, `controller`, `task`) name a class by `_target_`; their keys are the fields of that class's own
`Config` dataclass, which stands in the plug-in's file.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from nemo_amft.config.typed import Location
from nemo_amft.evaluation.config import EvaluationConfig

Sources = Location | tuple[Location, ...]
"""Where problems come from: one source, or a list, which is read as one."""


@dataclass(frozen=True)
class SourceConfig:
    """One source of a mixture."""

    path: Sources
    """Where it is."""
    weight: float = 1.0
    """Its share of what is drawn, as a part of the sum of all weights, however many it holds."""
    name: str | None = None
    """What it is called in metrics. None: as its file, folder or hub id."""


Mixture = Sources | tuple[SourceConfig, ...]
"""Sources, or several of them with weights."""


@dataclass(frozen=True)
class TrainerConfig:
    num_nodes: int = 1
    """Nodes of the job."""
    devices: int = 1
    """Processes a node: one a GPU, or one a core on CPU. num_nodes * devices must equal the processes started."""
    max_steps: int = 500
    """T, training steps of the main loop (paper, Table 6: 500)."""
    precision: Literal["32", "bf16"] = "32"
    """32: fp32 throughout. bf16: bf16 parameters with fp32 main weights and fp32 gradient reduction."""
    seed: int = 1
    """Seeds generated problems, data order and sampling."""
    log_every: int = 1
    """Steps between lines on the terminal where it is no TTY (metrics.jsonl always has every step)."""
    phase_timeout_s: float = 3600.0
    """A phase of a step that lasts longer than this dumps every thread's stack and ends the job."""
    meeting_timeout_s: float = 300.0
    """How long ranks wait at the start for those that have not come, before the job ends with a line that names them."""
    peak_tflops: float | None = None
    """Matrix-product peak of a process's device, for perf/mfu. null: a GPU's data sheet; on a CPU measured at the start."""
    save_rollouts: int = 16
    """Sampled responses a step written to rollouts/ (0: none, -1: all)."""


@dataclass(frozen=True)
class ScratchConfig:
    """A small model from random weights, with a character tokenizer of the project's own."""

    family: Literal["qwen2", "qwen3", "llama"] = "qwen2"
    """Architecture, by the hub's model_type."""
    hidden_size: int = 256
    """Width."""
    intermediate_size: int = 512
    """Width of the MLP."""
    num_hidden_layers: int = 4
    """Layers."""
    num_attention_heads: int = 8
    """Query heads."""
    num_key_value_heads: int = 2
    """Key-value heads (grouped-query attention)."""
    max_position_embeddings: int = 512
    """Longest sequence."""
    tie_word_embeddings: bool = False
    """Share input and output embeddings."""
    initializer_range: float = 0.02
    """Standard deviation of the initial weights."""
    seed: int = 1
    """Seeds the weights, apart from trainer.seed: runs of several seeds start from one model, as from a pretrained one."""


@dataclass(frozen=True)
class ModelConfig:
    path: Location | None = None
    """Hub id or folder in hub format (config.json, safetensors, tokenizer). None: `scratch`."""
    scratch: ScratchConfig = field(default_factory=ScratchConfig)
    """Used when `path` is None."""
    tokenizer: Location | None = None
    """Hub id or folder of another tokenizer than the model's own."""
    chat_template: Location | None = None
    """File with a chat template (Jinja) to use instead of the tokenizer's own."""
    chat_template_kwargs: dict[str, Any] = field(default_factory=dict)
    """Variables of the chat template, such as {enable_thinking: false}: in training, in evaluation, and in hf/ as defaults."""
    chat_template_time: str | None = None
    """What a chat template that reads the clock is told, such as 2026-01-31. None: when the run was first started, kept in its
    folder."""
    config_overrides: dict[str, Any] = field(default_factory=dict)
    """Fields of the hub config to replace, for example {rope_theta: 40000, max_position_embeddings: 16384}."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model. Off unless you trust its author."""
    tensor_model_parallel_size: int = 1
    """Ranks that share each layer."""
    pipeline_model_parallel_size: int = 1
    """Ranks that share the stack of layers."""
    virtual_pipeline_model_parallel_size: int | None = None
    """Chunks of layers a pipeline rank holds (interleaved schedule)."""
    context_parallel_size: int = 1
    """Ranks that share each sequence. Meant for Transformer Engine; the local attention gathers all keys, which is slow."""
    expert_model_parallel_size: int = 1
    """Ranks that share experts. Only dense models are supported, so 1."""
    sequence_parallel: bool = False
    """Split activations outside attention and MLP over the tensor-parallel ranks."""
    micro_batch_size: int = 8
    """Sequences a forward pass, where `micro_batch_tokens` is null."""
    micro_batch_tokens: int | None = None
    """Token budget of a forward pass: it takes as many sequences of similar length as fit, a longer one alone."""
    sequence_packing: bool = True
    """Lay the sequences of a forward pass end to end instead of padding them to the longest."""
    recompute_granularity: Literal["full", "selective"] | None = None
    """Activation recomputation, by Megatron's names."""
    recompute_method: Literal["uniform", "block"] | None = None
    """Which layers full recomputation covers."""
    recompute_num_layers: int | None = None
    """Layers a recomputed unit (uniform) or recomputed layers (block)."""
    transformer_impl: Literal["auto", "local", "transformer_engine"] = "auto"
    """Layer implementation. auto: Transformer Engine where it is installed and a GPU is there, else local."""
    logprob_chunk_tokens: int = 1024
    """Tokens whose logits exist at one time when log-probs and entropies are computed."""


@dataclass(frozen=True)
class OptimConfig:
    lr: float = 1e-6
    """Peak learning rate (paper, Table 6: alpha_theta 1e-6, alpha_phi 5e-6)."""
    min_lr: float = 0.0
    """Learning rate at the end of the decay."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Adam's moments."""
    eps: float = 1e-8
    """Adam's epsilon."""
    weight_decay: float = 0.1
    """Decoupled weight decay; none on biases and norms."""
    clip_grad: float = 1.0
    """Global gradient norm above which gradients are scaled down; 0 switches clipping off."""
    lr_decay_style: Literal["constant", "linear", "cosine"] = "cosine"
    """Shape after the warm-up of the learning rate."""
    lr_warmup_ratio: float = 0.1
    """Share of the steps over which the learning rate rises linearly."""
    use_distributed_optimizer: bool = True
    """Shard optimiser state over data-parallel ranks (ZeRO-1)."""
    overlap_grad_reduce: bool = False
    """Reduce gradients while the backward pass still runs."""
    overlap_param_gather: bool = False
    """Gather updated parameters while the next forward pass runs."""
    optimizer_cpu_offload: bool = False
    """Keep optimiser state in host memory and update it there. Needs use_distributed_optimizer, and a GPU: on a CPU it is there
    anyway."""
    optimizer_offload_fraction: float = 1.0
    """Share of the optimiser state that is kept in host memory."""


@dataclass(frozen=True)
class CriticConfig:
    path: Location | None = None
    """Hub id or folder the critic's body starts from, or a reward model. None: the policy's weights at the end of warm-up."""
    warmup_steps: int = 0
    """Critic-only steps before the policy's first RL update (Open-Reasoner-Zero: 50)."""
    value_clip: float = 0.2
    """Range around the old value within which the value loss is not clipped; 0 switches clipping off."""
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(lr=5e-6))
    """The critic's optimiser."""


@dataclass(frozen=True)
class WarmupConfig:
    steps: int = 50
    """W, SFT steps before the main loop (paper, Table 6: 50). 0 skips the phase."""
    demonstrations_per_step: int = 128
    """Demonstrations a warm-up step."""
    lr: float = 1e-5
    """Warm-up's own learning rate: the main loop's is about 1000 times weaker than SFT needs."""
    lr_decay_style: Literal["constant", "linear", "cosine"] = "constant"
    """Shape of warm-up's learning rate."""
    lr_warmup_ratio: float = 0.1
    """Share of warm-up over which its learning rate rises."""
    select_every: int = 0
    """Steps between validations in warm-up, of which the best hands its policy to the main loop; 0: the last step does."""
    target_entropy_batches: int = 4
    """Demonstration batches over which H* is averaged after warm-up."""


@dataclass(frozen=True)
class DataConfig:
    prompts_per_step: int = 128
    """Distinct prompts rolled out a step (paper, Table 6: 128)."""
    samples_per_prompt: int = 8
    """n, rollouts a prompt."""
    demonstrations_per_step: int = 128
    """m, demonstrations in the SFT term of a step."""
    train: Mixture | None = None
    """Training problems: a file, a glob, a folder or a hub id, a list of them, or a list of {path, weight, name}, which are
    mixed by weight (docs/data.md). Generated tasks take none."""
    demonstrations: Mixture | None = None
    """D_SFT, where it is not the training problems that have a demonstration: for warm-up, H* and the SFT term. It needs no
    answers, and loses what is held out."""
    validation: Sources | None = None
    """Held-out problems for D_val. None: `validation_size` are held out of `train`."""
    test: Sources | None = None
    """Problems of the final evaluation. None: D_val."""
    validation_size: int = 512
    """Problems held out of `train` for D_val, by problem text."""
    max_prompt_tokens: int = 1024
    """Longer prompts are dropped, counted and shown."""
    max_demonstration_tokens: int = 8192
    """Longer demonstrations are cut, counted and shown."""
    max_truncated_fraction: float = 0.05
    """Share of cut demonstrations above which the run is refused: a cut one loses its answer."""


@dataclass(frozen=True)
class RolloutConfig:
    engine: Literal["vllm", "megatron"] = "vllm"
    """vllm: colocated in the training processes. megatron: KV-cache decoding on the policy itself."""
    max_new_tokens: int = 8192
    """Longest response (paper, Table 6: 8192)."""
    max_conversation_tokens: int | None = None
    """All responses of an episode and the user's messages between them, in tasks with several turns; an episode that has no
    room for one more message and response ends as cut. None: one response."""
    temperature: float = 1.0
    """Sampling temperature of training rollouts."""
    top_p: float = 1.0
    """Nucleus sampling; below 1 it biases the policy gradient and is refused together with importance weights."""
    top_k: int = 0
    """Top-k sampling, 0 for all; as top_p."""
    stop_token_ids: tuple[int, ...] = ()
    """Tokens that end a response, beside the end tokens of tokenizer and model. Such a token is the response's last one, and
    graders read it as it is written, unless the chat template ends a turn with it."""
    stop: tuple[str, ...] = ()
    """Strings that end a response, as in ["</answer>"]: with the token that completes one of them, and may say more than it.
    That token is kept, and graders read all that was written, the string included. Counts as finished, as an end token does."""
    seed_per_sample: bool = True
    """A generator a response, seeded by (run seed, step, prompt, sample): the same tokens on every layout."""
    tensor_model_parallel_size: int = 1
    """Ranks that share one rollout engine (vllm only; the policy's own decoding has the policy's layout)."""
    max_num_seqs: int = 256
    """Responses decoded at once by an engine."""
    kv_cache_gb: float = 1.0
    """Cache of an engine on CPU, GiB a rank."""
    gpu_memory_utilization: float = 0.6
    """Share of GPU memory an engine may take while it is awake."""
    enforce_eager: bool = True
    """No CUDA graphs: slower decoding, faster start."""
    sync_bucket_mb: int = 256
    """Most MiB of the policy that are gathered at one time for the engine: what a weight sync takes on top of both models."""
    probe_tolerance: float = 0.02
    """Largest mean absolute difference of log-probs between engine and trainer that the probe after a sync accepts."""

    @property
    def longest(self) -> int:
        """Most tokens that a rollout adds to its prompt."""
        return self.max_conversation_tokens or self.max_new_tokens


@dataclass(frozen=True)
class RewardConfig:
    workers: int = 2
    """Child processes that verify responses, a node."""
    timeout_s: float = 10.0
    """A verification that takes longer is killed, scored 0 and counted in reward/timeout."""
    memory_mb: int = 2048
    """Address space a child process may grow by before it is stopped (counted in reward/error)."""
    function: Location | None = None
    """A function of your own that judges in place of the task's verifier: my/file.py:function, or dotted.path.function."""


@dataclass(frozen=True)
class ValidationConfig:
    every: int = 20
    """Steps between validations; 0: only at the end."""
    prompts: int = 256
    """Problems a validation."""
    samples: int = 1
    """Responses a problem."""
    temperature: float = 0.6
    """Sampling temperature of validation and final evaluation (paper: 0.6); 0 is greedy."""
    final_prompts: int = 512
    """Problems of the final evaluation."""
    benchmarks_every: int = 0
    """Steps between evaluations of `benchmarks`, a multiple of `every`; 0: only at the start and the end."""


@dataclass(frozen=True)
class CheckpointConfig:
    every: int = 50
    """Steps between checkpoints; 0: only at the end."""
    keep: int = 2
    """Newest checkpoints kept."""
    export_hf: bool = True
    """Write the final policy to hf/ in the hub's format."""


@dataclass(frozen=True)
class ExpManagerConfig:
    """NeMo's exp_manager keys that apply here."""

    exp_dir: Location | None = "runs"
    """Folder of all runs."""
    name: str = "amft"
    """Name of the run."""
    explicit_log_dir: Location | None = None
    """The run directory itself, instead of exp_dir/name."""
    resume_if_exists: bool = True
    """Continue from the newest intact checkpoint in the run directory."""
    max_time_per_run: str | None = None
    """Save and stop (exit status 75) at the first step boundary after this time since the start of the Slurm job, or of the
    process: days:hours:minutes:seconds, such as 00:03:45:00."""
    create_tensorboard_logger: bool = True
    """Write TensorBoard event files."""
    create_wandb_logger: bool = False
    """Log to Weights & Biases."""
    wandb_logger_kwargs: dict[str, Any] = field(default_factory=dict)
    """Arguments of Lightning's WandbLogger (name, project, ...)."""


@dataclass(frozen=True)
class Config:
    """A whole run."""

    method: Any
    """Plug-in: how a step's batch is composed and which loss terms it has (conf/method)."""
    controller: Any
    """Plug-in: what sets the weights of the loss terms (conf/controller)."""
    task: Any
    """Plug-in: problems, demonstrations and verifier (conf/task)."""
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    """Size and length of the job."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """Policy and layout."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    """The policy's optimiser."""
    critic: CriticConfig = field(default_factory=CriticConfig)
    """Value function, built where the method's advantage is gae."""
    warmup: WarmupConfig = field(default_factory=WarmupConfig)
    """SFT before the main loop."""
    data: DataConfig = field(default_factory=DataConfig)
    """Batches and sources."""
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    """Rollout engine and sampling."""
    reward: RewardConfig = field(default_factory=RewardConfig)
    """Verification."""
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    """Validation during training and at the end."""
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    """Checkpoints."""
    exp_manager: ExpManagerConfig = field(default_factory=ExpManagerConfig)
    """Run directory and loggers."""
    benchmarks: dict[str, Sources | None] = field(default_factory=dict)
    """What nemo_amft.evaluate puts to a model: name -> hub, or sources as data.train has; null leaves it out."""
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    """Drawing and grading of benchmarks (nemo_amft/evaluation/config.py)."""
