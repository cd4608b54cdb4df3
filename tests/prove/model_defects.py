"""Defects of sizes, towers, rounding and FLOP counts. Each breaks this process and returns how to mend it."""

from dataclasses import replace
from typing import Any

import torch

from tests.prove.planting import Mend, replace_name


def tied_copy_counted() -> Mend:
    """The last pipeline stage's copy of a tied embedding counts as weights of the model's own."""
    import model.canonical

    def make(box: Any) -> Any:
        return lambda name, owner, parameter, config, groups: box(name, True, parameter, config, groups)

    return replace_name(model.canonical, "_box", make)


def uncut_heads() -> Mend:
    """Layouts are not looked at before anything is built."""
    import model.build
    import model.shards

    mends = [replace_name(place, "check_layout", lambda _: lambda *_: None) for place in (model.build, model.shards)]

    def mend() -> None:
        for one in mends:
            one()

    return mend


def swapped_rotary() -> Mend:
    """The vision tower rotates by (column, row) instead of (row, column)."""
    import model.vision

    def make(merge_block_places: Any) -> Any:
        return lambda rows, columns, merge: merge_block_places(rows, columns, merge).flip(-1)

    return replace_name(model.vision, "merge_block_places", make)


def rounded_norms() -> Mend:
    """RMSNorm sums its squares in the model's own precision."""
    from model.layers import RMSNorm

    def planted(self: Any, x: torch.Tensor) -> torch.Tensor:
        total = torch.zeros_like(x[..., :1])
        for piece in (x * x).split(1, dim=-1):
            total = total + piece
        return x * torch.rsqrt(total / x.shape[-1] + self.eps) * self.weight

    RMSNorm.forward = planted  # type: ignore[method-assign]  # torch's own lies in the base class

    def mend() -> None:
        del RMSNorm.forward

    return mend


def attention_not_counted() -> Mend:
    """FLOPs of the decoder's attention are left out."""
    import model.flops

    def make(decoder_flops: Any) -> Any:
        return lambda *arguments: (decoder_flops(*arguments)[0], 0)

    return replace_name(model.flops, "decoder_flops", make)


def text_rows_charged() -> Mend:
    """Rows without a picture are charged the backward pass to the merger like the others."""
    import train.batches

    def make(row_work: Any) -> Any:
        return lambda *lengths: replace(row_work(*lengths), blind_tokens=0, blind_pairs=0, blind_targets=0)

    return replace_name(train.batches, "row_work", make)


MODEL_PLANTS = {
    "tied_copy_counted": (tied_copy_counted, ("sizes/2b",)),
    "uncut_heads": (uncut_heads, ("sizes/refused",)),
    "swapped_rotary": (swapped_rotary, ("parity/tied",)),
    "rounded_norms": (rounded_norms, ("bf16/0.06",)),
    "text_rows_charged": (text_rows_charged, ("flops/stage1",)),
    "attention_not_counted": (attention_not_counted, ("flops/stage1", "flops/forward")),
}
