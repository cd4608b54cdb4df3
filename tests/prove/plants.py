"""Known defects, planted from outside in a worker process. A proof that passes with one of them is no proof.

Each plant replaces one name where the code looks it up, and names the cases of `tests.prove.core` that must notice.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

Mend = Callable[[], None]


@dataclass(frozen=True, kw_only=True)
class Plant:
    """One defect."""

    apply: Callable[[], Mend]
    """Breaks this process; returns how to mend it."""
    cases: tuple[str, ...]
    """Cases to run with it; at least one has to fail."""


def _replace(place: Any, name: str, make: Callable[[Any], Any]) -> Mend:
    """Put `make(original)` in the place of `place.name`."""
    original = place.__dict__[name]
    plain = original.__func__ if isinstance(original, classmethod | staticmethod) else original
    setattr(place, name, make(plain))
    return lambda: setattr(place, name, original)


def _scaled_loss(factor: Callable[[Any, Any], float]) -> Mend:
    """Multiply what the schedule differentiates, and leave what it reports."""
    from parallel.schedule import Schedule

    def make(run: Any) -> Any:
        def planted(self: Any, microbatches: Any, lengths: Any, loss: Any, forward_only: bool = False) -> Any:
            def scaled(row: Any, output: Any) -> Any:
                scalar, report = loss(row, output)
                return scalar * factor(self, microbatches), report

            return run(self, microbatches, lengths, scaled, forward_only)

        return planted

    return _replace(Schedule, "run", make)


def dp_scale() -> Mend:
    """The mean over the data axis is not undone."""
    return _scaled_loss(lambda schedule, _: 1.0 / schedule._groups.dp_size)


def microbatch_mean() -> Mend:
    """The loss is divided by the number of microbatches, as megatron-core does with a pair."""
    return _scaled_loss(lambda _, microbatches: 1.0 / len(microbatches))


def _finishing(change: Callable[..., tuple]) -> Mend:
    import parallel.zero

    return _replace(
        parallel.zero, "finish_model_gradients", lambda finish: lambda *arguments: finish(*change(*arguments))
    )


def tied_reduction() -> Mend:
    """The two copies of a tied embedding keep their own gradients."""
    return _finishing(lambda parameters, tied, gradient, groups: (parameters, [], gradient, replace(groups, tied=None)))


def sequence_parallel_reduction() -> Mend:
    """Partial gradients of norms stay partial."""
    return _finishing(lambda parameters, tied, gradient, groups: ([], tied, gradient, groups))


def _merger_dropped(rank: int) -> Mend:
    from parallel.zero import ZeroOptimizer

    def make(reduce: Any) -> Any:
        def planted(self: Any) -> None:
            if self._groups.tp_size > 1 and self._groups.tp_rank == rank:
                for parameter, name in self._names.items():
                    if name.startswith("merger.") and parameter.grad is not None:
                        parameter.grad.zero_()
            reduce(self)

        return planted

    return _replace(ZeroOptimizer, "reduce_gradients", make)


def merger_gradient_rank0() -> Mend:
    """Tensor rank 0 loses the merger's gradient."""
    return _merger_dropped(0)


def merger_gradient_rank1() -> Mend:
    """Tensor rank 1 loses it."""
    return _merger_dropped(1)


def packed_positions() -> Mend:
    """Positions go on from sample to sample."""
    import data.loader

    def make(pack_row: Any) -> Any:
        def planted(row: Any, encoded: Any, patches: Any) -> Any:
            packed = pack_row(row, encoded, patches)
            first, pieces = 0, []
            for sample in encoded:
                pieces.append(sample.positions + first)
                first = int(pieces[-1].max()) + 1
            return replace(packed, positions=np.concatenate(pieces, axis=1))

        return planted

    return _replace(data.loader, "pack_row", make)


def row_positions() -> Mend:
    """Every token's position is its place in the row."""
    import data.loader

    def make(pack_row: Any) -> Any:
        def planted(row: Any, encoded: Any, patches: Any) -> Any:
            packed = pack_row(row, encoded, patches)
            return replace(packed, positions=np.tile(np.arange(len(packed.tokens)), (3, 1)))

        return planted

    return _replace(data.loader, "pack_row", make)


def label_mask_encoded() -> Mend:
    """A sample's mask of supervised tokens lies one place too far left."""
    from data.encode import _Writer

    def make(finish: Any) -> Any:
        def planted(self: Any, all_media: bool) -> Any:
            self.supervised = [*self.supervised[1:], False]
            return finish(self, all_media)

        return planted

    return _replace(_Writer, "finish", make)


def label_mask_announced() -> Mend:
    """The same, between the row and the model."""
    import train.batches

    def make(integers: Any) -> Any:
        def planted(row: Any, multiple: int) -> Any:
            targets = np.full_like(row.targets, -100)
            mask = np.append(row.targets[1:] >= 0, False)
            following = np.append(row.tokens[1:], 0)
            targets[mask] = following[mask]
            return integers(replace(row, targets=targets), multiple)

        return planted

    return _replace(train.batches, "_integers", make)


def row_twice() -> Mend:
    """A resumed run reads the last row again."""
    from data.plan import Cursor

    def make(from_dict: Any) -> Any:
        def planted(cls: Any, saved: Any) -> Any:
            cursor = from_dict(cls, saved)
            # Before the first row of a window come rows whose number only the plan knows: its first row will do.
            return replace(cursor, row=cursor.row - 1) if cursor.row else replace(cursor, window=cursor.window - 1)

        return classmethod(planted)

    return _replace(Cursor, "from_dict", make)


def moments_forgotten() -> Mend:
    """A resumed run starts Adam anew."""
    import train.trainer

    return _replace(train.trainer, "load_optimizer", lambda _: lambda *__, **___: None)


def crc_off() -> Mend:
    """Bytes of a shard are believed as they come."""
    from data.index_file import Index

    def make(_: Any) -> Any:
        def planted(self: Any, i: int) -> bytes:
            columns = self.columns
            shard = self.shards[columns["shard"][i]].name
            return self.store.read_range(shard, int(columns["offset"][i]), int(columns["nbytes"][i]))

        return planted

    return _replace(Index, "read_bytes", make)


def commit_digest_off() -> Mend:
    """Files of a checkpoint are believed without their digests."""
    import train.commits

    return _replace(train.commits, "problems", lambda _: lambda path, share=0, shares=1: [])


def early_seal() -> Mend:
    """COMMIT is written before the files it vouches for."""
    import train.checkpoint
    from train import commits

    def make(write: Any) -> Any:
        def planted(path: Any, entries: Any, group: Any) -> None:
            commits.seal(path, {})
            write(path, entries, group)

        return planted

    return _replace(train.checkpoint, "write_tensors", make)


def frozen_decay() -> Mend:
    """Weight decay reaches frozen parts."""
    from parallel.zero import ZeroOptimizer

    def make(step: Any) -> Any:
        def planted(self: Any) -> float:
            norm = step(self)
            with torch.no_grad():
                for parameter in self._module.parameters():
                    if not parameter.requires_grad:
                        parameter.mul_(1.0 - 1e-4)
            return norm

        return planted

    return _replace(ZeroOptimizer, "step", make)


def nothing_frozen() -> Mend:
    """Frozen parts get gradients and optimizer state."""
    import tests.harness.layouts as layouts

    def make(build: Any) -> Any:
        return lambda config, parallel, groups, dtype, trainable: build(config, parallel, groups, dtype, config.parts)

    return _replace(layouts, "build_model", make)


def frozen_tower_in_graph() -> Mend:
    """A frozen tower keeps what a backward pass would need."""
    from model.vision import VisionTower

    def make(forward: Any) -> Any:
        def planted(self: Any, patches: Any, grids: Any) -> Any:
            flags = [parameter.requires_grad for parameter in self.parameters()]
            self.requires_grad_(True)
            output = forward(self, patches, grids)
            for parameter, flag in zip(self.parameters(), flags, strict=True):
                parameter.requires_grad_(flag)
            return output

        return planted

    return _replace(VisionTower, "forward", make)


def swapped_norms() -> Mend:
    """The two norms of every layer change places at import."""
    import model.hf_folder

    def make(hf_pieces: Any) -> Any:
        def planted(config: Any) -> Any:
            table = hf_pieces(config)
            one, other = "input_layernorm", "pre_mlp_layernorm"
            return {
                name: table[name.replace(one, other) if one in name else name.replace(other, one)] for name in table
            }

        return planted

    return _replace(model.hf_folder, "hf_pieces", make)


def _attention(change: Callable[[Any, Any], tuple[Any, bool]]) -> Mend:
    from model.attention import PackedAttention

    def make(by_length: Any) -> Any:
        def planted(self: Any, query: Any, key: Any, value: Any, segments: Any) -> Any:
            segments, causal = change(self, segments)
            was, self.causal = self.causal, causal
            try:
                return by_length(self, query, key, value, segments)
            finally:
                self.causal = was

        return planted

    return _replace(PackedAttention, "_by_length", make)


def no_causal_mask() -> Mend:
    """Tokens see what comes after them."""
    return _attention(lambda self, segments: (segments, False))


def across_samples() -> Mend:
    """Tokens see the samples before theirs."""
    from model.attention import Segments

    def change(self: Any, segments: Any) -> tuple[Any, bool]:
        if not self.causal:
            return segments, False
        return Segments(lengths=(sum(segments.lengths),), device=segments.device), True

    return _attention(change)


def handshake() -> Mend:
    """Pipeline stages ask each other for shapes before every message."""
    from megatron.core.pipeline_parallel.p2p_communication import P2PCommunicator

    from parallel.schedule import AnnouncedCommunicator

    return _replace(AnnouncedCommunicator, "_communicate_shapes", lambda _: P2PCommunicator._communicate_shapes)


def padded_rows() -> Mend:
    """Rows are padded to a multiple of 8."""
    import train.batches

    return _replace(train.batches, "_integers", lambda integers: lambda row, multiple: integers(row, 8))


PLANTS = {
    "dp_scale": Plant(apply=dp_scale, cases=("layout/stage2/DP2",)),
    "microbatch_mean": Plant(apply=microbatch_mean, cases=("layout/stage2/DP2", "step/tied")),
    "tied_reduction": Plant(apply=tied_reduction, cases=("layout/stage2/PP2",)),
    "sequence_parallel_reduction": Plant(apply=sequence_parallel_reduction, cases=("layout/stage2/TP2+SP",)),
    "merger_gradient_rank0": Plant(apply=merger_gradient_rank0, cases=("layout/stage1/TP2",)),
    "merger_gradient_rank1": Plant(apply=merger_gradient_rank1, cases=("layout/stage3/TP2",)),
    "packed_positions": Plant(apply=packed_positions, cases=("positions",)),
    "row_positions": Plant(apply=row_positions, cases=("parity/tied",)),
    "label_mask_encoded": Plant(apply=label_mask_encoded, cases=("supervision",)),
    "label_mask_announced": Plant(apply=label_mask_announced, cases=("parity/tied",)),
    "row_twice": Plant(apply=row_twice, cases=("resume/DP2",)),
    "moments_forgotten": Plant(apply=moments_forgotten, cases=("resume/DP2",)),
    "crc_off": Plant(apply=crc_off, cases=("damaged shard",)),
    "commit_digest_off": Plant(apply=commit_digest_off, cases=("damaged commit",)),
    "early_seal": Plant(apply=early_seal, cases=("save cut short",)),
    "frozen_decay": Plant(apply=frozen_decay, cases=("frozen/stage1", "frozen/stage3")),
    "nothing_frozen": Plant(apply=nothing_frozen, cases=("frozen/stage1", "frozen/stage3")),
    "frozen_tower_in_graph": Plant(apply=frozen_tower_in_graph, cases=("tower memory",)),
    "swapped_norms": Plant(apply=swapped_norms, cases=("parity/untied",)),
    "no_causal_mask": Plant(apply=no_causal_mask, cases=("parity/tied",)),
    "across_samples": Plant(apply=across_samples, cases=("parity/tied",)),
    "handshake": Plant(apply=handshake, cases=("messages/PP2",)),
    "padded_rows": Plant(apply=padded_rows, cases=("messages/PP2",)),
}
