"""One run as typed, frozen records. Hydra ends in `train/resolve.py`; everything after it sees these."""

from dataclasses import dataclass, field
from typing import Literal

from data.config import DataConfig, SourceConfig
from model.config import ModelConfig
from parallel.config import ParallelConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class StageConfig:
    """What one training stage trains, for how long, and how fast."""

    name: str
    """What the stage is called on the terminal, in metrics and in the report."""
    trainable: tuple[str, ...]
    """Parts that learn, out of vision, merger, language. The others get no gradient and no optimizer state."""
    learning_rates: dict[str, float]
    """Peak learning rate of each trainable part."""
    weight_decays: dict[str, float] = field(default_factory=dict)
    """Weight decay of a part, where it is not optimizer.weight_decay. Norms and biases are never decayed."""
    layer_decays: dict[str, float] = field(default_factory=dict)
    """Factor (0, 1] by which the rate of vision or language falls from each layer to the one below it. The last layer,
    final norm and head have the part's own rate, embeddings (a tied one too) and patch embedding one factor less than
    the first layer. Absent: every layer has the part's rate."""
    steps: int | None = None
    """Length in optimizer steps; exactly one of `steps` and `tokens` is given."""
    tokens: int | None = None
    """Length in text and visual tokens, as the Qwen2-VL paper counts (arXiv 2409.12191, section 3.1)."""
    warmup: float = 0.01
    """Share of the length over which the rate climbs from 0."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """How the rate falls from its peak to `final_rate` after the warmup."""
    final_rate: float = 0.1
    """Rate at the end as a share of the peak; not read by `constant`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimizerConfig:
    """AdamW."""

    betas: tuple[float, float] = (0.9, 0.95)
    """Decay of the mean of gradients and of their squares."""
    eps: float = 1e-8
    """Added to the root of the mean square that an update is divided by."""
    weight_decay: float = 0.05
    """Applies to matrices; norms and biases are not decayed. stage.weight_decays has it part by part."""
    clip_norm: float = 1.0
    """Norm of the whole gradient, all parts and ranks together, above which it is scaled down to it."""
    skip_non_finite: int = 0
    """Steps in a row that are left out, and recorded, where loss or gradient is not finite; the next one stops the
    run. 0 stops at the first."""


@dataclass(frozen=True, kw_only=True, slots=True)
class InitConfig:
    """Where the first weights come from, part by part (train/sources.py). Parts that nothing gives are drawn."""

    from_run: str | None = None
    """A run folder; its newest checkpoint's weights are taken, never its optimizer."""
    from_hf: str | None = None
    """A Hugging Face Qwen2-VL folder."""
    language: str | None = None
    """A Hugging Face Qwen2 causal LM folder, or a Qwen2-VL one of any tower, for the language part alone."""
    vision: str | None = None
    """A Hugging Face CLIP folder (CLIP, DFN) for the vision part alone (model/clip.py)."""
    accept_activation: str | None = None
    """The `hidden_act` of the `init.vision` folder, where it is not quick_gelu. The tower computes quick_gelu all the
    same, so such a start is approximate; training has to make up for it."""
    fresh: tuple[str, ...] = ()
    """Parts drawn at random although from_run or from_hf has them."""
    std: float = 0.02
    """Standard deviation of random matrices (ours; transformers' initializer_range for this family)."""


GIVEN_UP = 1.1
"""Of checkpoint.commit_seconds, by when main threads have given up a save: the thread of rank 0 does before, and knows
who is late (train/checkpoint/save.py)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckpointConfig:
    """When state is written."""

    every_steps: int | None = None
    """None: only at the end of the stage."""
    keep: int = 2
    """The newest so many stay."""
    keep_every_steps: int | None = None
    """Those of steps that it divides stay as well, for ever."""
    commit_seconds: float = 600.0
    """A checkpoint is written beside training; one that is not sealed in this time is given up by all ranks."""
    grace_seconds: float = 25.0
    """From the first signal that asks the run to end to when it has ended with its state saved. The least that is
    usual: preempted cloud machines and Kubernetes give 30 s, SLURM's KillWait and torchrun too. Raise it to what the
    scheduler gives, so that longer steps are finished."""
    upload: str | None = None
    """oss://bucket/prefix that gets every checkpoint, beside training; it is reached as data.oss says."""
    upload_bytes_per_second: float = 1e8
    """Budget of uploads, apart from data.oss.limiter; one process of the whole run uploads."""
    transfer_seconds: float = 3600.0
    """What the end of a run waits at most for its last upload, and the start for a checkpoint that is fetched."""

    @property
    def last_save_seconds(self) -> float:
        """That the last save of a run takes at most, once it has begun: until threads have let go of the one before,
        and until it is given up itself."""
        return (1.0 + GIVEN_UP) * self.commit_seconds


@dataclass(frozen=True, kw_only=True, slots=True)
class LogConfig:
    """What is told about a run."""

    every_steps: int = 10
    """Between lines on the terminal. `metrics.jsonl` has every step."""
    wandb: Literal["disabled", "offline", "online"] = "disabled"
    """Offline writes below the run's folder, for `wandb sync`."""
    wandb_project: str = "triptych"
    """The project in wandb that the run is listed under."""
    tensorboard: bool = False
    """Event files in RUN/tensorboard; needs the package `tensorboard`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluateConfig:
    """What a run is measured by that it does not learn from. Nothing of it changes the order of data or a weight."""

    every_steps: int | None = None
    """Between evaluations; one more comes at the end of the stage. None: there are none."""
    sources: tuple[SourceConfig, ...] = ()
    """Held-out sources, indexed as those of `data` are; sizes and budgets are those of `data`. Weights are not read."""
    samples: int = 256
    """Of each source, at most: the same ones each time, drawn by data.seed."""
    answers: int = 0
    """Samples of each source that the model answers in words, beside training: the step's checkpoint is exported for
    it. 0: none."""
    answer_tokens: int = 64
    """The most that an answer may have."""
    command: tuple[str, ...] = ()
    """Program and arguments that are run beside training on each evaluated step's checkpoint, exported for
    transformers: {export} stands for its folder, {out} for a file that it may write a JSON object of results to, {step}
    for the step. Empty: none."""
    command_seconds: float = 3600.0
    """From the start of the export or answers of one step; what takes longer is ended."""
    wait_seconds: float | None = None
    """What the end of the stage waits at most for the last answers and command; then they are ended. None: for as long
    as command_seconds lets them run. All ranks wait and keep their GPUs meanwhile; a run that is asked to end does not
    wait, and 0 never does."""
    devices: str = ""
    """CUDA_VISIBLE_DEVICES for answers and command; empty is the CPU, as the run's own GPUs are full."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ProfileConfig:
    """A trace by torch.profiler, for chrome://tracing or Perfetto: RUN/profile/."""

    steps: tuple[int, int] | None = None
    """First and last step of the trace, of those that this start takes. None: no trace."""
    ranks: tuple[int, ...] = (0,)
    """Each writes a file of its own, some megabytes a step."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunConfig:
    """The root: everything `python -m train` needs."""

    run_dir: str
    """Folder of the run: its recipe, metrics, checkpoints and faults. All nodes share it."""
    seed: int = 0
    """Of first weights that are drawn; recipes give `data.seed` the same."""
    precision: Literal["fp32", "bf16"] = "bf16"
    """Of weights and activations. Gradients are summed, and masters and moments kept, in fp32 either way."""
    resume: bool = False
    """Go on from the newest usable checkpoint in `run_dir`; `triptych resume` sets it."""
    new_segment: tuple[str, ...] = ()
    """What of `data` may be other than in the checkpoint it goes on from (`sources`, `window`, ...); a new segment of
    the plan begins there. `triptych resume --allow` sets it, for one start: no checkpoint keeps it."""
    stop_after_steps: int | None = None
    """Save and leave after this many steps of the whole stage, as a pre-empted run would; the schedule is not bent."""
    model: ModelConfig
    data: DataConfig
    parallel: ParallelConfig
    stage: StageConfig
    optimizer: OptimizerConfig
    init: InitConfig
    checkpoint: CheckpointConfig
    log: LogConfig
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    profile: ProfileConfig = field(default_factory=ProfileConfig)
