"""How a run is spread over processes, and by which kernels they compute."""

from dataclasses import dataclass, field
from typing import Literal

Recompute = Literal["none", "selective", "full"]
"""What backward computes again instead of keeping: nothing, the attention core, or whole layers (arXiv 2205.05198)."""


LEAST_TIMEOUT, MOST_TIMEOUT = 5.0, 1e6
"""Seconds. A job of less has not even started; a store takes no number beyond the other."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RecomputeConfig:
    """Recomputation of each tower. The vision tower's patches far outnumber the language model's tokens."""

    vision: Recompute = "none"
    """Of the tower's blocks. Full costs one more forward pass of the tower and keeps one input a block."""

    language: Recompute = "none"
    """Of the decoder's layers. Full costs one more forward pass of them and keeps one input a layer."""


@dataclass(frozen=True, kw_only=True, slots=True)
class KernelConfig:
    """Faster ways of computing the same function, each against a plain one in the same precision: results differ by
    rounding alone. Where a fast way does not exist, each field says so, and the plain one is taken."""

    fused_attention: bool = True
    """Both towers: one kernel for all segments of a row (torch.nn.attention.varlen), which exists on CUDA for bf16.
    Plain, on CPU and for fp32: one scaled_dot_product_attention for all segments of a length."""

    fused_norms: bool = True
    """Both towers and the merger: torch's own layer_norm and rms_norm; on CPU the latter is made of single operations.
    Plain: the formula in fp32, operation by operation."""

    fused_adamw: bool = True
    """One kernel for an update, on CUDA and on CPU. Plain: torch's operations one by one over all parameters."""

    overlap_tensor: bool = True
    """In backward, messages of the tensor axis travel while weight gradients are computed; on CUDA before Blackwell
    this needs CUDA_DEVICE_MAX_CONNECTIONS=1, else the run is refused. Plain: they are waited for before, and with
    sequence parallelism the gathered input of a matrix is kept for backward instead of being gathered again."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ParallelConfig:
    """Sizes of the mesh axes and what goes with them. The data axis is what is left: world / (tensor x pipeline)."""

    tensor: int = 1
    """Ranks that share every weight matrix of the vision tower and the language model."""

    pipeline: int = 1
    """Pipeline stages. The vision tower and the merger are always on the first."""

    sequence_parallel: bool = False
    """Split activations outside the matrices over the tensor axis too; rows are padded to a multiple of `tensor`."""

    chunks: int = 1
    """Pieces of the model that each pipeline stage holds; 2 or more is interleaved 1F1B (arXiv 2104.04473, 2.2)."""

    split: tuple[int, ...] | Literal["auto"] | None = None
    """Language layers of each piece of the pipeline, in the model's order: `pipeline` x `chunks` numbers. None shares
    them evenly, earlier pieces taking one less when uneven; auto balances the FLOPs of the recipe's own mixture."""

    recompute: RecomputeConfig = field(default_factory=RecomputeConfig)

    kernels: KernelConfig = field(default_factory=KernelConfig)

    zero: int = 1
    """What DeepSpeed shards over the data axis: 1, masters and moments of the optimizer. Nothing else is supported."""

    reduce_bucket_elements: int = 50_000_000
    """ZeRO-1 reduction bucket. DeepSpeed's own default of 5e8 elements costs 2 GB of fp32 in every process."""

    timeout_seconds: float = 600.0
    """By then a job has ended in which a rank raised, died or stalled (docs/faults.md)."""

    def __post_init__(self) -> None:
        if not 0 < self.reduce_bucket_elements < 2**31:
            raise ValueError(
                f"parallel.reduce_bucket_elements is {self.reduce_bucket_elements}; it must be from 1 to 2,147,483,647"
            )
        if not LEAST_TIMEOUT <= self.timeout_seconds <= MOST_TIMEOUT:
            raise ValueError(
                f"parallel.timeout_seconds is {self.timeout_seconds:g}; it must be from {LEAST_TIMEOUT:g}, as "
                f"processes take seconds to start, to {MOST_TIMEOUT:g}"
            )
        for name in ("tensor", "pipeline", "chunks"):
            if getattr(self, name) < 1:
                raise ValueError(f"parallel.{name} is {getattr(self, name)}; it is a count and must be at least 1")
        if self.zero != 1:
            raise ValueError(f"parallel.zero={self.zero}: {self._why_not_zero()}; set parallel.zero=1")
        if self.sequence_parallel and self.tensor == 1:
            raise ValueError(
                "parallel.sequence_parallel=true splits activations over the tensor axis, but parallel.tensor is 1; "
                "set parallel.sequence_parallel=false or parallel.tensor=2 or more"
            )
        if self.chunks > 1 and self.pipeline == 1:
            raise ValueError(
                f"parallel.chunks={self.chunks} interleaves pipeline stages, but parallel.pipeline is 1; "
                "set parallel.chunks=1 or parallel.pipeline=2 or more"
            )
        if isinstance(self.split, tuple) and len(self.split) != self.num_pieces:
            cure = f"give {self.num_pieces} numbers, auto or null" if self.num_pieces > 1 else "leave it null"
            raise ValueError(
                f"parallel.split lists {len(self.split)} pieces {list(self.split)} but parallel.pipeline is "
                f"{self.pipeline} and parallel.chunks is {self.chunks}; {cure}"
            )

    @property
    def num_pieces(self) -> int:
        """Pieces that the pipeline cuts the language model into; piece i lies on pipeline stage i % pipeline."""
        return self.pipeline * self.chunks

    def _why_not_zero(self) -> str:
        """What speaks against the ZeRO stage that is asked for. Both stages free less here than an axis does."""
        if self.zero == 0:
            return "every replica would hold all of the optimizer's state, for the same numbers"
        if self.zero not in (2, 3):
            return "DeepSpeed has stages 1, 2 and 3"
        each = (
            "ZeRO-2 would reduce and re-shard all gradients over the data axis in each backward pass"
            if self.zero == 2
            else "ZeRO-3 would gather all weights over the data axis in each forward and each backward pass"
        )
        if self.pipeline > 1:
            return (
                f"1F1B over parallel.pipeline={self.pipeline} runs one forward and one backward pass a microbatch, and "
                f"{each}, not once a step; the pipeline already divides weights and gradients"
            )
        return (
            f"a step has a backward pass for each microbatch, and {each}, not once a step; to hold less in a rank "
            "divide weights and gradients by parallel.tensor or parallel.pipeline"
        )

    def data_size(self, world_size: int) -> int:
        """Size of the data axis for a world of `world_size` processes; ValueError if the axes do not divide it."""
        model_ranks = self.tensor * self.pipeline
        if world_size % model_ranks:
            raise ValueError(
                f"{world_size} processes cannot be shared by parallel.tensor={self.tensor} x "
                f"parallel.pipeline={self.pipeline} = {model_ranks} ranks a replica; "
                f"start a multiple of {model_ranks} processes or change the two axes"
            )
        return world_size // model_ranks
