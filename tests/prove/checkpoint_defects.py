"""Defects of checkpoints, planted."""

from typing import Any

from tests.prove import data_defects
from tests.prove.planting import Mend, replace_name


def share_lost() -> Mend:
    """The last element of each data rank's share of a weight is written by nobody."""
    from train.checkpoint import entries

    def make(share: Any) -> Any:
        def planted(name: str, count: int, writer: Any) -> tuple[int, int]:
            start, stop = share(name, count, writer)
            return start, max(start, stop - 1)

        return planted

    return replace_name(entries, "_share", make)


def not_copied() -> Mend:
    """What is written is what tensors hold when their turn comes."""
    from train.checkpoint.host import HostCopies

    return replace_name(HostCopies, "copied", lambda _: lambda self, files, aside: files)


def waited_for() -> Mend:
    """Training waits for the seal."""
    from train.checkpoint.save import Saver

    def make(save: Any) -> Any:
        def planted(self: Any, gather: Any, aside: Any = None) -> None:
            save(self, gather, aside)
            self.finish()

        return planted

    return replace_name(Saver, "save", make)


def early_seal() -> Mend:
    """COMMIT is written before other ranks have written."""
    from train.checkpoint.save import Saver

    def make(awaited: Any) -> Any:
        def planted(self: Any, keys: Any, key: str, deadline: float, late: str) -> Any:
            if key.startswith("wrote/") and key != f"wrote/{self._rank}":
                return {"fault": None, "records": [], "files": {}}
            return awaited(self, keys, key, deadline, late)

        return planted

    return replace_name(Saver, "_awaited", make)


def pruned_before_the_seal() -> Mend:
    """The commit before goes when the new one is not there yet."""
    from train.checkpoint import commits, pruning

    def make(seal: Any) -> Any:
        def planted(path: Any, files: Any) -> None:
            run = path.parent.parent
            pruning.delete(run, [each.path for each in commits.attempts(run) if each.sealed])
            seal(path, files)

        return planted

    return replace_name(commits, "seal", make)


def faults_kept_to_oneself() -> Mend:
    """A rank that could not write a file says nothing of it."""
    from train.checkpoint.save import Saver

    def make(write: Any) -> Any:
        def planted(self: Any, save: Any) -> Any:
            try:
                return write(self, save)
            except OSError:
                return {}

        return planted

    return replace_name(Saver, "_write_files", make)


def waits_without_end() -> Mend:
    """A rank waits for its own thread to write, as long as that takes."""
    from train.checkpoint.save import Saver

    def make(poll: Any) -> Any:
        def planted(self: Any) -> None:
            if self._current is not None and self._current.written.is_set():
                poll(self)

        return planted

    return replace_name(Saver, "poll", make)


def frozen_written_again() -> Mend:
    """Frozen parts are in every save."""
    from train.checkpoint.run import RunCheckpoints

    return replace_name(RunCheckpoints, "_unchanged", lambda _: lambda self, aside: ())


def references_not_heeded() -> Mend:
    """Pruning deletes files that later commits refer to."""
    import shutil

    from train.checkpoint import pruning

    def make(_: Any) -> Any:
        return lambda run_dir, paths: [shutil.rmtree(path) for path in paths] and None

    return replace_name(pruning, "delete", make)


def first_slice_for_all() -> Mend:
    """Every tensor rank loads the first one's slice of a weight."""
    from dataclasses import replace

    from train.checkpoint import load

    def make(held: Any) -> Any:
        def planted(parameters: Any, boxes: Any) -> Any:
            for chunk in held(parameters, boxes):
                yield replace(chunk, offset=(0,) * len(chunk.offset))

        return planted

    return replace_name(load, "weights_held", make)


def cursor_of_the_dropped_step() -> Mend:
    """What a dropped step had read is not read again."""
    from train.trainer import Trainer

    def make(_: Any) -> Any:
        def planted(self: Any) -> Any:
            return lambda: self._words(self.state.to_dict(), self.batches.cursor, self.loss)

        return planted

    return replace_name(Trainer, "_told", make)


def left_over_forgotten() -> Mend:
    """A new segment of the plan does not take what the window before has left."""
    from data.plan.plan import Plan
    from data.plan.used import Drawn

    def make(used_at: Any) -> Any:
        return lambda self, cursor: {name: Drawn(count=each.count) for name, each in used_at(self, cursor).items()}

    return replace_name(Plan, "used_at", make)


def newest_alone_looked_at() -> Mend:
    """Before a start the data is held to the newest checkpoint, be it one that cannot be gone on from."""
    from train import ready

    return replace_name(ready, "_has_data", lambda _: lambda commit, run, indexes: False)


def partial_folder_left() -> Mend:
    """What a tool had written when the disk failed stays."""
    from train.checkpoint import rewrite

    return replace_name(rewrite, "_undone", lambda _: lambda path, new: "")


def room_not_looked_for() -> Mend:
    """A tool writes until the disk is full."""
    from train.checkpoint import rewrite

    return replace_name(rewrite, "_check_room", lambda _: lambda path, nbytes: None)


_STRUCK = "optimizer.00001.safetensors"
PLANTS = {
    "save_share_lost": (share_lost, ("commit",)),
    "save_not_copied": (not_copied, ("at the call",)),
    "save_waited_for": (waited_for, ("stall",)),
    "save_early_seal": (early_seal, (f"fault/SIGKILL/rank 1/fsync {_STRUCK}",)),
    "save_pruned_before_the_seal": (pruned_before_the_seal, ("fault/SIGKILL/rank 0/rename to COMMIT",)),
    "save_faults_kept_to_oneself": (faults_kept_to_oneself, (f"fault/disk full/rank 1/write {_STRUCK}",)),
    "save_waits_without_end": (waits_without_end, (f"fault/hang/rank 1/fsync {_STRUCK}",)),
    "save_frozen_written_again": (frozen_written_again, ("frozen",)),
    "save_references_not_heeded": (references_not_heeded, ("frozen",)),
    "save_digests_believed": (data_defects.commit_digest_off, ("damage",)),
    "resume_moments_forgotten": (data_defects.moments_forgotten, ("same/stage2/DP2",)),
    "resume_row_twice": (data_defects.row_twice, ("same/stage2/DP2",)),
    "stop_cursor_of_the_dropped_step": (cursor_of_the_dropped_step, ("signal/stuck",)),
    "plan_left_over_forgotten": (left_over_forgotten, ("plan/epochs",)),
    "tools_partial_folder_left": (partial_folder_left, ("tools/failing disk",)),
    "tools_room_not_looked_for": (room_not_looked_for, ("tools/failing disk",)),
    "resume_newest_alone_looked_at": (newest_alone_looked_at, ("plan/damaged",)),
    "resume_first_slice_for_all": (first_slice_for_all, ("layout/stage2/tied/PP2 to TP2+SP", "chain")),
}
ENDING = {"save_pruned_before_the_seal", "save_early_seal"}
"""Nothing is left to go on from, or nothing ends."""
