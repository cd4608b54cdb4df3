"""Bytes of weights, gradients and optimizer state that one rank holds, from counts alone.

Read off DeepSpeed 0.19.8: `runtime/zero/stage_1_and_2.py` for fp32, `runtime/bf16_optimizer.py` for bf16. Activations
and what the update of one group makes while it runs are not in it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

_FP32 = 4
_ALIGNMENT = 2
"""Elements to which DeepSpeed pads each rank's share of a group (`nccl_start_alignment_factor`)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class HeldBytes:
    """What one rank holds, and until when."""

    weights: int
    """Trainable and frozen, in the run's precision; trainable ones lie in one flat tensor a group (`bit16_groups_flat`,
    `bf16_groups_flat`)."""
    masters: int
    """This rank's share of the trainable weights in fp32 (`single_partition_of_fp32_groups`,
    `fp32_groups_flat_partition`). DeepSpeed keeps it beside fp32 weights too."""
    moments: int
    """AdamW's two, fp32, as large as the masters each."""
    accumulators: int
    """bf16: the sums of gradients in fp32, not shared out and never freed (`fp32_groups_gradients_flat`)."""
    gradients: int
    """fp32: `.grad` of every trainable parameter, from backward to their reduction. bf16: 0, each is added to its
    accumulator, and freed, as soon as backward has made it."""
    reduced_gradients: int
    """fp32: gradients of parameters that lie in this rank's share at least in part, from their reduction to the update
    (`averaged_gradients`). bf16: 0, the accumulators hold them."""
    bucket: int
    """fp32: at most this is made beside the gradients for one message of their reduction, and freed after it. bf16: 0,
    accumulators are sent from where they lie."""

    @property
    def trained(self) -> int:
        """Elements of the trainable parameters, each has a gradient in fp32."""
        return (self.gradients + self.accumulators) // _FP32

    @property
    def always(self) -> int:
        """Between steps."""
        return self.weights + self.masters + self.moments + self.accumulators

    @property
    def after_backward(self) -> int:
        """With the gradients of a whole step."""
        return self.always + self.gradients

    @property
    def after_reduction(self) -> int:
        """With what the update needs of them."""
        return self.always + self.reduced_gradients


def held_bytes(
    groups: Sequence[Sequence[int]],
    frozen: int,
    *,
    dp_size: int,
    dp_rank: int,
    precision: Literal["fp32", "bf16"],
    bucket_elements: int,
) -> HeldBytes:
    """Bytes on one rank of ZeRO-1.

    Args:
        groups: elements of each trainable parameter of this rank, in the order of its group, for each group of the
            optimizer. A group that is empty here has one element all the same (`parallel/zero.py`).
        frozen: elements of its other parameters.
        bucket_elements: `parallel.reduce_bucket_elements`.
    """
    groups = [group or (1,) for group in groups]
    multiple = _ALIGNMENT * dp_size
    padded = [-(-sum(group) // multiple) * multiple for group in groups]
    shares = [elements // dp_size for elements in padded]
    trainable = sum(map(sum, groups))
    fp32 = precision == "fp32"
    kept = sum(_elements_in_share(group, share, dp_rank) for group, share in zip(groups, shares, strict=True))
    return HeldBytes(
        weights=(sum(padded) + frozen) * (_FP32 if fp32 else 2),
        masters=sum(shares) * _FP32,
        moments=sum(shares) * _FP32 * 2,
        accumulators=0 if fp32 else sum(padded) * _FP32,
        gradients=trainable * _FP32 if fp32 else 0,
        reduced_gradients=kept * _FP32 if fp32 else 0,
        bucket=min(bucket_elements, trainable) * _FP32 if fp32 else 0,
    )


def _elements_in_share(group: Sequence[int], share: int, dp_rank: int) -> int:
    """Elements of the parameters that reach into a rank's share of their group: a gradient is kept whole or not."""
    start, kept = 0, 0
    for elements in group:
        if start < (dp_rank + 1) * share and start + elements > dp_rank * share:
            kept += elements
        start += elements
    return kept
