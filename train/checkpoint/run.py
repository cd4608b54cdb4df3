"""What a run puts into its checkpoints: which files, and which of them have not changed."""

import importlib.metadata
import math
import platform
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch.distributed as dist
from torch import Tensor

from train.agreement import rank_in, summed_over
from train.checkpoint import commits, pruning
from train.checkpoint.boxes import Chunk
from train.checkpoint.commits import TENSORS, Commit, FileEntry
from train.checkpoint.contents import Contents, Outcome
from train.checkpoint.entries import (
    MODEL_PARTS,
    OPTIMIZER,
    Optimizer,
    Writer,
    state_held,
    weights_to_write,
)
from train.checkpoint.generators import state_file
from train.checkpoint.host import Aside
from train.checkpoint.save import Saver
from train.checkpoint.uploads import Uploads
from train.errors import CheckpointError

if TYPE_CHECKING:
    from model.canonical import Box

_VERSIONS = ("torch", "megatron-core", "deepspeed", "transformers", "numpy")


def environment() -> dict[str, str]:
    """Versions that a later reader of a checkpoint may need to know."""
    found = {"python": platform.python_version()}
    for name in _VERSIONS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "absent"
    return found


class RunCheckpoints:
    """The checkpoints of one start of a run. Every rank of the world makes one and calls its methods alike."""

    def __init__(
        self,
        run_dir: str | Path,
        parameters: Mapping[str, Tensor],
        boxes: "Mapping[str, Box]",
        optimizer: Optimizer | None,
        *,
        writer: Writer,
        frozen: Sequence[str],
        keep: int,
        commit_seconds: float,
        keep_every: int | None = None,
        resumed: Commit | None = None,
        tell: Callable[[Outcome], None] = lambda _: None,
        uploads: Uploads | None = None,
        seconds_left: Callable[[], float] = lambda: math.inf,
        group: dist.ProcessGroup | None = None,
    ) -> None:
        """Args:
        run_dir: the run's folder; checkpoints go to run_dir/checkpoints/.
        parameters, boxes: local parameters of this rank and the box of each, by local name.
        optimizer: None for a run that keeps none.
        writer: this rank among those that hold the same weights.
        frozen: parts that are written once, and referred to as long as they are what was written.
        keep: sealed checkpoints to leave.
        commit_seconds: from the copy to the seal; a save that takes longer is given up by all ranks.
        keep_every: sealed checkpoints of steps that it divides are never deleted.
        resumed: the checkpoint that `parameters` were just loaded from.
        tell: hears what became of each save, in the main thread.
        uploads: is offered each sealed checkpoint; on rank 0.
        seconds_left: to a run that was asked to end; no save waits longer for the one before.
        group: the ranks that save together; None is the world.
        """
        self._parameters, self._boxes, self._optimizer = parameters, boxes, optimizer
        self._writer, self._frozen = writer, tuple(frozen)
        self._tell = tell
        self._group = group
        self._last: Outcome | None = None
        self._newest: int | None = None
        self._uploads = uploads
        self._run_dir, self._keep, self._keep_every = Path(run_dir), keep, keep_every
        self._saver = Saver(
            run_dir,
            commit_seconds=commit_seconds,
            tell=self._heard,
            tidy=self._sealed,
            seconds_left=seconds_left,
            group=group,
        )
        self._stamps = {part: self._stamp(part) for part in self._frozen}
        self._known: dict[str, dict[str, FileEntry]] = {}
        """On rank 0, the files of frozen parts as they were written last."""
        if resumed is not None and resumed.path.resolve().parent == Path(run_dir).resolve() / "checkpoints":
            self._newest = resumed.step
            self._remember(resumed.files)

    def save(
        self,
        step: int,
        told: Mapping[str, Any],
        recipe: str,
        records: Sequence[Mapping[str, Any]] = (),
        random: Sequence[Chunk] = (),
        aside: Aside | None = None,
        *,
        last: bool = False,
    ) -> None:
        """Copy the state as it is now; it is written while the caller goes on.

        Args:
            step: optimizer steps of the stage that are done.
            told: what JSON can hold: tokens seen, data cursor, plan fingerprint, seeds. `step`, `steps_taken` and the
                environment's versions are added. Rank 0's is written.
            recipe: the resolved recipe, YAML; rank 0's is written.
            records: samples of this rank that could not be used.
            random: states of this rank's generators (train/checkpoint/generators.py).
            aside: for a call from another thread while the main thread is held.
            last: no other save comes after it; the same on every rank.
        """
        self._saver.save(lambda: self._contents(step, told, recipe, records, random, aside), aside, last=last)

    @property
    def newest(self) -> int | None:
        """The step of the newest sealed checkpoint, written now or gone on from, None if there is none; alike on every
        rank after `settle` or `finish`."""
        return self._newest

    def _contents(
        self,
        step: int,
        told: Mapping[str, Any],
        recipe: str,
        records: Sequence[Mapping[str, Any]],
        random: Sequence[Chunk],
        aside: Aside | None,
    ) -> Contents:
        kept = self._unchanged(aside)
        rank = rank_in(self._group)
        files: dict[str, list[Chunk]] = {
            f"{part}.{rank:05d}{TENSORS}": list(weights_to_write(self._parameters, self._boxes, self._writer, (part,)))
            for part in MODEL_PARTS
            if part not in kept
        }
        if self._optimizer is not None:
            fragments = self._optimizer.fragments()
            files[f"{OPTIMIZER}.{rank:05d}{TENSORS}"] = list(state_held(fragments, self._boxes, self._writer))
        files[state_file(rank)] = list(random)
        added = {
            "step": step,
            "steps_taken": self._optimizer.steps_taken if self._optimizer else None,
            "environment": environment(),
            "saved_at": commits.now(),
        }
        return Contents(
            step=step,
            files=files,
            told=dict(told) | added,
            recipe=recipe,
            records=records,
            kept={name: entry for part in kept for name, entry in self._known.get(part, {}).items()},
        )

    def poll(self) -> None:
        """Tell what became of the save under way, if that is known."""
        self._saver.poll()

    def settle(self) -> None:
        """Wait for the save under way, but no longer than the run has left, and tell what became of it."""
        self._saver.settle()

    def finish(self) -> Outcome | None:
        """Wait for the last save, if there was one. Raises CheckpointError if it counts for nothing."""
        self._saver.finish()
        if self._last is not None and self._last.fault is not None:
            raise CheckpointError(f"{self._last.path.name} was not finished and counts for nothing: {self._last.fault}")
        return self._last

    def _sealed(self, path: Path) -> None:
        """In the thread that writes, on rank 0: what a new checkpoint makes of the older ones."""
        held = frozenset[str]()
        if self._uploads is not None:
            self._uploads.offer(path)
            held = self._uploads.held
        pruning.prune(self._run_dir, self._keep, path, every=self._keep_every, held=held)

    def _heard(self, outcome: Outcome) -> None:
        self._last = outcome
        if outcome.fault is None:
            self._newest = outcome.step
            self._remember(outcome.files)
        elif outcome.lost_files:  # the same on every rank
            self._known.clear()
        self._tell(outcome)

    def _remember(self, files: Mapping[str, FileEntry]) -> None:
        for part in self._frozen:
            self._known[part] = {name: entry for name, entry in files.items() if name.startswith(f"{part}.")}

    def _unchanged(self, aside: Aside | None) -> tuple[str, ...]:
        """Frozen parts that a checkpoint of this run has as they are, the same on every rank. A collective, but for
        `aside`."""
        if not self._frozen:
            return ()
        changed = [self._stamp(part) != self._stamps[part] for part in self._frozen]
        known = [bool(self._known.get(part)) for part in self._frozen]
        numbers = [*changed, *known]
        summed = aside.summed(numbers) if aside else summed_over(numbers, self._group)
        self._stamps = {part: self._stamp(part) for part in self._frozen}
        count = len(self._frozen)
        whole = list(zip(self._frozen, summed[:count], summed[count:], strict=True))
        for part, changes, _ in whole:
            if changes:
                self._known.pop(part, None)
        return tuple(part for part, changes, knows in whole if knows and not changes)

    def _stamp(self, part: str) -> list[tuple[int, int]]:
        """Another one after any change in place, which torch counts for each tensor."""
        return [
            (parameter.data_ptr(), parameter._version)
            for name, parameter in self._parameters.items()
            if name in self._boxes and self._boxes[name].name.startswith(f"{part}.")
        ]
