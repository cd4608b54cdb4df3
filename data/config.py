"""What a recipe says about data. Checked here, once, with the numbers in the message."""

from dataclasses import dataclass, field
from typing import Literal

from data.store.config import OssConfig

IGNORE = -100  # target id that the loss skips
LEAST_TOKENS = 4  # visual tokens of a temporal patch, below which a clip gets fewer frames rather than smaller ones

LEAST_DECODER_BYTES = 256 * 2**20


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceConfig:
    """One folder of shards and its index."""

    name: str
    """What the source is called in metrics, faults and the quarantine; no two have the same."""
    path: str
    """Folder of shards, `oss://BUCKET/PREFIX`, or PREFIX of megatron-core token files."""
    index: str | None = None
    """Folder of the index; None is PATH/index. Shards that lie in no folder (`oss://`) need one."""
    weight: float = 1.0
    """Share of every window, relative to the other sources; `data.weights_are` says of what."""

    def __post_init__(self) -> None:
        if not self.weight > 0:
            raise ValueError(
                f"source {self.name!r}: weight is {self.weight}, must be > 0; leave the source out instead"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageConfig:
    """Sizes in pixels. Defaults are those of the published Qwen2-VL `preprocessor_config.json`."""

    patch_size: int = 14
    """Side of a patch in pixels; as in the model."""
    merge_size: int = 2
    """Patches along one side of a visual token; as in the model."""
    temporal_patch_size: int = 2
    """Frames that a patch spans. A picture counts as two equal ones."""
    min_pixels: int = 56 * 56
    """A smaller picture is made larger, its shape kept."""
    max_pixels: int = 16384 * 28 * 28
    """A larger picture is made smaller; at 28 x 28 pixels a visual token this is the most tokens a picture has."""

    @property
    def factor(self) -> int:
        """Pixels along one side of a visual token; sides of resized pictures are multiples of it."""
        return self.patch_size * self.merge_size

    @property
    def patch_dim(self) -> int:
        """Length of one flattened patch: 3 colours x temporal_patch_size x patch_size squared (1176)."""
        return 3 * self.temporal_patch_size * self.patch_size**2

    def __post_init__(self) -> None:
        if min(self.patch_size, self.merge_size, self.temporal_patch_size) < 1:
            raise ValueError(f"patch_size, merge_size and temporal_patch_size must be positive, got {self}")
        _check_pixels("image", self.min_pixels, self.max_pixels, self.factor)


@dataclass(frozen=True, kw_only=True, slots=True)
class VideoConfig:
    """Frame choice and sizes. Defaults: qwen-vl-utils, and the 16384 tokens a clip of the Qwen2-VL paper."""

    fps: float = 2.0
    """Frames that are taken of each second."""
    min_frames: int = 4
    """Frames a clip has at least, however short."""
    max_frames: int | None = 768
    """None: as many as fps asks for and max_tokens has room for."""
    min_pixels: int = 128 * 28 * 28
    """Of a frame, where the clip has room for it."""
    max_pixels: int = 768 * 28 * 28
    """Of a frame."""
    total_pixels: int = int(128000 * 28 * 28 * 0.9)
    """Of all frames of a clip together; longer clips get smaller frames, but none below `min_pixels`."""
    max_tokens: int = 16384
    """Visual tokens a clip may have at most; wins over min_pixels, and over fps and min_frames."""
    timeout_seconds: float = 30.0
    """Deadline of a clip, both decoders together."""
    timeout_per_second: float = 0.2
    """Seconds that each second of a clip adds to its deadline."""
    memory_bytes: int = 8 * 2**30
    """Resident memory at which a decoder's process is killed; there is one or two to a process that reads."""
    cache_dir: str | None = None
    """Where decoded, resized frames are kept for other epochs, ranks and runs: a local disk. None: nowhere."""
    cache_bytes: int = 20 * 2**30
    """Most that the cache holds; the frames longest unused go first."""

    def __post_init__(self) -> None:
        _check_pixels("video", self.min_pixels, self.max_pixels, 1)
        if not (self.fps > 0 and 2 <= self.min_frames <= (self.max_frames or self.min_frames)):
            raise ValueError(
                f"video: need fps > 0 and 2 <= min_frames <= max_frames, got fps {self.fps}, "
                f"min_frames {self.min_frames}, max_frames {self.max_frames}"
            )
        if self.max_tokens < LEAST_TOKENS:
            raise ValueError(f"video: max_tokens is {self.max_tokens}, a clip needs at least {LEAST_TOKENS}")
        if self.timeout_seconds <= 0 or min(self.timeout_per_second, self.cache_bytes) < 0:
            raise ValueError(
                f"video: need timeout_seconds > 0, timeout_per_second >= 0 and cache_bytes >= 0, got "
                f"{self.timeout_seconds}, {self.timeout_per_second} and {self.cache_bytes}"
            )
        if self.memory_bytes < LEAST_DECODER_BYTES:
            raise ValueError(
                f"video: memory_bytes is {self.memory_bytes}; a decoder needs {LEAST_DECODER_BYTES} to start"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """Everything that decides which tokens and pixels step s trains on, plus how far to read ahead."""

    tokenizer: str
    """Hugging Face tokenizer folder."""
    sources: tuple[SourceConfig, ...]
    tokens_per_row: int
    """Room of a row in tokens, text and visual; the longest sample that can be trained on. A row is a microbatch, so
    activations grow with it."""
    patches_per_row: int
    """Room of a row in patches; merge_size squared (4) of them make a visual token."""
    rows_per_step: int
    """Rows of an optimizer step, all replicas together: the global batch, which the number of GPUs does not change."""
    window: int
    """Samples that are packed together; more fill rows better and mix sources over a longer stretch."""
    seed: int
    """Of the order of samples, and of nothing else."""
    weights_are: Literal["samples", "tokens"] = "samples"
    """What sources have their shares of. Of tokens: of what their samples have on average."""
    run_length: int = 1
    """Samples that lie side by side in a source and stay together in the order and in a row, so that one request reads
    them: fewer requests, less shuffling."""
    too_long: Literal["refuse", "shrink"] = "refuse"
    """What is done with a sample that no row takes. Shrinking makes its pictures and clips smaller, by the model's own
    resize rule, until it fits; text is never cut."""
    image: ImageConfig = field(default_factory=ImageConfig)
    video: VideoConfig = field(default_factory=VideoConfig)
    oss: OssConfig | None = None
    """How sources at `oss://` are reached; with none there must be no such source."""
    prefetch_steps: int = 2
    """Steps that are read ahead of training."""
    workers: int = 2
    """Processes that read and decode for each replica; 0 reads in a thread of the trainer."""
    sample_seconds: float = 600.0
    """A worker that takes longer over one sample is ended and replaced."""
    bad_share: float = 0.02
    """Share of its samples that may be bad before a replica ends the run, once it has read 100. Counted anew by a
    resumed run, as the source may have been mended."""
    bad_in_row: int = 50
    """Samples that may be bad one after the other, in the order in which a replica trains on them."""

    def __post_init__(self) -> None:
        names = [source.name for source in self.sources]
        if not names or len(set(names)) != len(names):
            raise ValueError(f"data.sources needs at least one source and no name twice, got {names}")
        for key in ("tokens_per_row", "rows_per_step", "window", "run_length", "prefetch_steps"):
            if getattr(self, key) < 1:
                raise ValueError(f"data.{key} is {getattr(self, key)}, must be at least 1")
        for key in ("patches_per_row", "seed", "workers", "bad_in_row"):
            if getattr(self, key) < 0:
                raise ValueError(f"data.{key} is {getattr(self, key)}, must not be negative")
        if not (self.sample_seconds > 0 and 0 <= self.bad_share <= 1):
            raise ValueError(
                f"data.sample_seconds must be positive and data.bad_share from 0 to 1, got {self.sample_seconds} and "
                f"{self.bad_share}"
            )


def _check_pixels(name: str, low: int, high: int, factor: int) -> None:
    if not (0 < low <= high and high >= factor**2):
        raise ValueError(
            f"{name}: need 0 < min_pixels <= max_pixels and max_pixels >= {factor**2} (one visual token), "
            f"got {low} and {high}"
        )
