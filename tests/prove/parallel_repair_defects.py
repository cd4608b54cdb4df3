"""Defects of `triptych checkpoint verify` and `repair`. Each breaks this process and returns how to mend it."""

from dataclasses import replace
from typing import Any

import torch

from tests.prove.planting import Mend, replace_name


def masters_not_looked_at() -> Mend:
    """Verify takes a weight as it is."""
    import launch.checkpoints.repair

    make = lambda values: lambda reader, name, master: values(reader, name, None)  # noqa: E731
    return replace_name(launch.checkpoints.repair, "_values", make)


def state_not_looked_at() -> Mend:
    """Verify reads weights and masters alone."""
    import launch.checkpoints.repair

    def make(values: Any) -> Any:
        return lambda reader, name, master: [] if ".exp_avg" in name else values(reader, name, master)

    return replace_name(launch.checkpoints.repair, "_values", make)


def names_not_looked_at() -> Mend:
    """Verify takes what is stored for what should be."""
    import launch.checkpoints.repair

    def make(_: Any) -> Any:
        def planted(commit: Any) -> dict[str, tuple[int, ...]]:
            reader = launch.checkpoints.repair.read_tensors(commit.path)
            return {name: reader.shape(name) for name in reader.names()}

        return planted

    return replace_name(launch.checkpoints.repair, "_wanted", make)


def master_from_weight() -> Mend:
    """Repair casts the wrong way: the weight is the truth, and its master becomes it."""
    import launch.checkpoints.repair

    def make(rewrite: Any) -> Any:
        def planted(commit: Any, mended: Any, note: Any) -> Any:
            reader = launch.checkpoints.repair.read_tensors(commit.path)
            casts = {f"optimizer.master.{name}": lambda name=name: reader.read(name).float() for name in mended}
            return rewrite(commit, casts, note)

        return planted

    return replace_name(launch.checkpoints.repair, "rewrite_commit", make)


def weight_cut_off() -> Mend:
    """Repair cuts a master off to bf16 where it should round."""
    import launch.checkpoints.repair

    def make(_: Any) -> Any:
        def planted(reader: Any, name: str) -> Any:
            master = reader.read(f"optimizer.master.{name}")
            cut = master.view(torch.int32).bitwise_and(-65536).view(torch.float32)
            return cut.to(reader.dtype(name))

        return planted

    return replace_name(launch.checkpoints.repair, "_master_as_weight", make)


def repair_prunes() -> Mend:
    """Repair deletes what it has repaired."""
    import launch.checkpoints.repair
    from train.checkpoint import pruning

    def make(rewrite: Any) -> Any:
        def planted(commit: Any, tensors: Any, note: Any) -> Any:
            path = rewrite(commit, tensors, note)
            pruning.prune(path.parent.parent, 1, path)
            return path

        return planted

    return replace_name(launch.checkpoints.repair, "rewrite_commit", make)


def repair_forgets_state() -> Mend:
    """A repaired checkpoint has lost its counters and cursor."""
    import launch.checkpoints.repair

    def make(rewrite: Any) -> Any:
        return lambda commit, tensors, note: rewrite(replace(commit, state={}), tensors, note)

    return replace_name(launch.checkpoints.repair, "rewrite_commit", make)


def repaired_as_older() -> Mend:
    """A repaired checkpoint counts as one of an earlier step."""
    import launch.checkpoints.repair

    def make(rewrite: Any) -> Any:
        return lambda commit, tensors, note: rewrite(replace(commit, step=commit.step - 1), tensors, note)

    return replace_name(launch.checkpoints.repair, "rewrite_commit", make)


def repair_seals_early() -> Mend:
    """COMMIT is written before the tensors."""
    from train.checkpoint import commits, disk, rewrite
    from train.checkpoint.commits import COMMIT, FILES, RECIPE, STATE, FileEntry

    def make(write: Any) -> Any:
        def planted(path: Any, *arguments: Any) -> Any:
            home = path.parent
            # Of two checkpoints of one step the one that was saved later counts.
            newest = b'{"saved_at": "2999-01-01T00:00:00Z", "repaired": []}'
            digests = {name: disk.write(home / name, [newest]) for name in (STATE, RECIPE)}
            commits.seal(home, {name: FileEntry(digest=each, folder=home.name) for name, each in digests.items()})
            written = write(path, *arguments)
            for name in (STATE, RECIPE, FILES, COMMIT):
                (home / name).unlink()
            return written

        return planted

    return replace_name(rewrite, "write_whole", make)


def repair_holds_the_model() -> Mend:
    """All tensors of a file stay in memory until it is finished."""
    from train.checkpoint import rewrite

    def make(write: Any) -> Any:
        def planted(path: Any, like: Any, names: Any, make: Any) -> Any:
            held = {name: make(name) for name in names}
            return write(path, like, names, held.__getitem__)

        return planted

    return replace_name(rewrite, "write_whole", make)


def unmendable_taken() -> Mend:
    """Repair mends what it can and leaves the rest."""
    import launch.checkpoints.repair

    def make(faults: Any) -> Any:
        return lambda commit: [fault for fault in faults(commit) if fault.curable]

    return replace_name(launch.checkpoints.repair, "faults", make)
