"""Defects of rows, shards and checkpoints. Each breaks this process and returns how to mend it."""

import json
from dataclasses import replace
from typing import Any

import numpy as np

from tests.prove.planting import Mend, replace_name


def packed_positions() -> Mend:
    """Positions go on from sample to sample."""
    from data.loading import rows

    def make(pack_row: Any) -> Any:
        def planted(row: Any, encoded: Any, patches: Any) -> Any:
            packed = pack_row(row, encoded, patches)
            first, pieces = 0, []
            for sample in encoded:
                pieces.append(sample.positions + first)
                first = int(pieces[-1].max()) + 1
            return replace(packed, positions=np.concatenate(pieces, axis=1))

        return planted

    return replace_name(rows, "pack_row", make)


def row_positions() -> Mend:
    """Every token's position is its place in the row."""
    from data.loading import rows

    def make(pack_row: Any) -> Any:
        def planted(row: Any, encoded: Any, patches: Any) -> Any:
            packed = pack_row(row, encoded, patches)
            return replace(packed, positions=np.tile(np.arange(len(packed.tokens)), (3, 1)))

        return planted

    return replace_name(rows, "pack_row", make)


def label_mask_encoded() -> Mend:
    """A sample's mask of supervised tokens lies one place too far left."""
    from data.encoding.encode import _Writer

    def make(finish: Any) -> Any:
        def planted(self: Any) -> Any:
            self.supervised = [*self.supervised[1:], False]
            return finish(self)

        return planted

    return replace_name(_Writer, "finish", make)


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

    return replace_name(train.batches, "_integers", make)


def row_twice() -> Mend:
    """A resumed run reads the last row again."""
    from data.plan.plan import Cursor

    def make(from_dict: Any) -> Any:
        def planted(cls: Any, saved: Any) -> Any:
            cursor = from_dict(cls, saved)
            # Before the first row of a window come rows whose number only the plan knows: its first row will do.
            return replace(cursor, row=cursor.row - 1) if cursor.row else replace(cursor, window=cursor.window - 1)

        return classmethod(planted)

    return replace_name(Cursor, "from_dict", make)


def moments_forgotten() -> Mend:
    """A resumed run starts Adam anew."""
    import train.trainer

    return replace_name(train.trainer, "load_optimizer", lambda _: lambda *__, **___: None)


def crc_off() -> Mend:
    """Bytes of a shard are believed as they come."""
    from data.index.file import Index

    def make(_: Any) -> Any:
        def planted(self: Any, i: int) -> bytes:
            columns = self.columns
            shard = self.shards[columns["shard"][i]].name
            return self.store.read_range(shard, int(columns["offset"][i]), int(columns["nbytes"][i]))

        return planted

    return replace_name(Index, "read_bytes", make)


def commit_digest_off() -> Mend:
    """Files of a checkpoint are believed without their digests."""
    import train.checkpoint.commits

    return replace_name(train.checkpoint.commits, "problems", lambda _: lambda path, share=0, shares=1: [])


def early_seal() -> Mend:
    """COMMIT is written before the files with tensors, which it lists later."""
    from train.checkpoint import commits, disk
    from train.checkpoint.commits import COMMIT, FILES, RECIPE, STATE, FileEntry
    from train.checkpoint.writing import Writing

    def make_write(write: Any) -> Any:
        def planted(self: Any, save: Any) -> Any:
            if self._rank == 0:
                digests = {name: disk.write(save.path / name, [b"{}"]) for name in (STATE, RECIPE)}
                listed = {name: FileEntry(digest=digest, folder=save.path.name) for name, digest in digests.items()}
                commits.seal(save.path, listed)
            return write(self, save)

        return planted

    def make_seal(seal: Any) -> Any:
        def planted(self: Any, save: Any, deadline: float) -> None:
            if json.loads(save.keys.get("wrote/0"))["fault"] is None:
                for name in (STATE, RECIPE, FILES, COMMIT):
                    (save.path / name).unlink()
            seal(self, save, deadline)

        return planted

    mends = replace_name(Writing, "_write_files", make_write), replace_name(Writing, "_seal", make_seal)
    return lambda: [mend() for mend in mends] and None


def padded_rows() -> Mend:
    """Rows are padded to a multiple of 8."""
    import train.batches

    return replace_name(train.batches, "_integers", lambda integers: lambda row, multiple: integers(row, 8))
