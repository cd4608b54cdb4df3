"""Checkpoints written beside training: the state is copied at the call, a thread of each rank writes its part of it.

The threads (train/checkpoint/writing.py) agree through the job's key-value store, so no collective runs outside of the
main threads, and no main thread touches the disk. Rank 0 makes the folder, and seals it once every rank has said what
it wrote. If one could not, or took longer than `checkpoint.commit_seconds`, none of it counts: the older checkpoint
stays the newest, the run goes on and tries again at the next occasion.

    main thread            thread of each rank                      key in the store
    copy, start -------->  0: look for room, make the folder        ready
    train                  write own files, fsync                   wrote/RANK: digests, or the fault
    poll()                 0: state, recipe, files.json, COMMIT     left: how many threads write no more
    <----------------------------------------------------------     verdict: sealed, or why not
    tell what became of it 0: delete older ones, or what has failed

The verdict is one key that is claimed once, by the thread of rank 0 or by any main thread that has waited for too long.
All main threads wait for that key and for no thread of their own, so they go on together whoever hangs. Where the
others were first, rank 0 takes its COMMIT back. A thread whose save was given up stops as soon as it sees so; until all
have, which main threads wait for together and not for long, the copies are in use and no other save begins.
"""

import math
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch.distributed as dist
from torch.distributed import distributed_c10d

from train.agreement import on_first_rank, rank_in, size_of, summed_over
from train.checkpoint import commits
from train.checkpoint.contents import Contents, Outcome
from train.checkpoint.host import Aside, HostCopies, beside
from train.checkpoint.writing import Save, Writing
from train.config import GIVEN_UP

_POLL_SECONDS = 0.02
_RANKS_AT_ONCE = 32
"""That look at the store so often; of more each looks more rarely, as one thread of one node answers all of them."""
_LET_GO_SECONDS = 10.0
"""After a save was given up, that training waits at most for threads to stop writing it, where another is due."""


class Saver:
    """Writes the checkpoints of one run, one at a time. Every rank of the world makes one and calls its methods alike.

    Without an initialised torch.distributed it serves one process.
    """

    def __init__(
        self,
        run_dir: str | Path,
        *,
        commit_seconds: float,
        tell: Callable[[Outcome], None],
        tidy: Callable[[Path], object],
        seconds_left: Callable[[], float] = lambda: math.inf,
        group: dist.ProcessGroup | None = None,
    ) -> None:
        """Args:
        run_dir: checkpoints go to run_dir/checkpoints/.
        commit_seconds: from the copy to the seal; a save that takes longer is given up by all.
        tell: hears what became of each save, in the thread that called `save`, `poll`, `settle` or `finish`.
        tidy: is given each folder that was sealed, on rank 0 and beside training, to delete older ones.
        seconds_left: to the run, which may have been asked to end; no save waits longer for the one before.
        group: the ranks that save together; None is the world.
        """
        self._run_dir = Path(run_dir)
        self._seconds = commit_seconds
        self._seconds_left = seconds_left
        self._tell = tell
        self._group = group
        self._size = size_of(group)
        self._pause = _POLL_SECONDS * max(1.0, self._size / _RANKS_AT_ONCE)
        # Of this start of the run: folders and keys have names that no other start's have.
        self._token = on_first_rank("naming this start of the run", lambda: secrets.token_hex(3), group)
        base = distributed_c10d._get_default_store() if dist.is_initialized() else dist.HashStore()
        self._store = dist.PrefixStore(f"checkpoints/{self._token}", base)
        self._count = 0
        self._current: Save | None = None
        self._last: Save | None = None
        self._decided_at = 0.0
        """When this rank heard what became of the last one."""
        self._waited = 0.0
        self._telling = threading.Lock()
        self._host = HostCopies()
        self._writing = Writing(
            self._run_dir, rank_in(group), self._size, seconds=commit_seconds, pause=self._pause, tidy=tidy
        )

    def save(self, gather: Callable[[], Contents], aside: Aside | None = None, *, last: bool = False) -> None:
        """Copy what `gather` gives to host memory and have it written. First waits for the save before, if need be.

        With `aside` it is called in another thread than the main one, which may only wait meanwhile. The `last` save of
        a run waits until threads have let go of the one before: for up to `commit_seconds`, or, where the run was asked
        to end, as long as that leaves it, and a little in any case.
        """
        self.settle()
        if last:
            patience = max(min(_LET_GO_SECONDS, self._seconds / 4), min(self._seconds, self._seconds_left()))
            self._wait_for_threads(patience, lambda: math.inf)
        began = time.monotonic()
        with beside(aside):
            contents = gather()
        path = commits.attempt_path(self._run_dir, contents.step, f"{self._token}{self._count % 256:02x}")
        self._count += 1
        nbytes, hanging = self._agreed(contents, aside)
        copied = self._host.copied(contents.files, aside) if not hanging else {}
        now = time.monotonic()
        made = Save(
            contents=replace(contents, files={name: chunks for name, chunks in copied.items() if chunks}),
            path=path,
            keys=dist.PrefixStore(path.name, self._store),
            nbytes=nbytes,
            stall_seconds=now - began + self._waited,
            started=now,
            before=self._last.tidied if self._last is not None else None,
        )
        self._waited = 0.0
        if hanging:
            self._tell(_outcome(made, f"{hanging} rank(s) still hang in the save before", 0.0))
            return
        self._current = self._last = made
        self._writing.start(made)

    def poll(self) -> None:
        """Tell what became of the save under way, if that is known, or if it has taken too long."""
        with self._telling:
            save = self._current
            if save is None:
                return
            if time.monotonic() - save.started > GIVEN_UP * self._seconds:
                save.claim(f"there was no verdict within {GIVEN_UP * self._seconds:.3g} s")
            if save.is_decided:
                self._decided_at, self._current = time.monotonic(), None
                self._tell(_outcome(save, *save.verdict()))

    def settle(self) -> None:
        """Wait for the save under way, if there is one, and tell what became of it.

        No longer than it may take, or than the run has left: then all ranks give it up, and wait a little for their
        threads to let go of it. Of several threads that call this one tells.
        """
        self._wait(self._seconds_left)
        self._wait_for_threads(min(_LET_GO_SECONDS, self._seconds / 4), self._seconds_left)

    def finish(self) -> None:
        """The same for the last save of a run, which gets all of its time; all ranks wait for older ones to go, too, so
        that none is alone in what comes next, be it a collective."""
        self._wait(lambda: math.inf)
        last = self._last
        if last is not None and last.written.is_set():
            # What has failed is deleted once all threads have let go of it, and one may never.
            patience = self._seconds if last.verdict()[0] is None else min(_LET_GO_SECONDS, self._seconds)
            end = time.monotonic() + min(patience, self._seconds_left())
            while not last.is_tidy and time.monotonic() < end:
                time.sleep(self._pause)

    def _wait(self, seconds_left: Callable[[], float]) -> None:
        """For the verdict on the save that is under way now."""
        began, save = time.monotonic(), self._current
        while save is not None and self._current is save:
            if seconds_left() <= 0:
                save.claim("it was still being written when the run had to end")
            self.poll()
            if self._current is save:
                time.sleep(self._pause)
        self._waited += time.monotonic() - began

    def _wait_for_threads(self, seconds: float, seconds_left: Callable[[], float]) -> None:
        """Until no rank's thread is in the save before, at most so long after its verdict. By the store, so that all
        ranks wait alike, and none for another in a collective."""
        began, save = time.monotonic(), self._last
        end = self._decided_at + seconds
        while save is not None and not save.is_left(self._size) and time.monotonic() < end and seconds_left() > 0:
            time.sleep(self._pause)
        self._waited += time.monotonic() - began

    def _agreed(self, contents: Contents, aside: Aside | None) -> tuple[int, int]:
        """(bytes of all ranks, ranks that still write the save before), the same on every rank. A collective, but for
        `aside`."""
        hanging = self._last is not None and not self._last.written.is_set()
        numbers = [contents.nbytes, hanging]
        nbytes, count = aside.summed(numbers) if aside else summed_over(numbers, self._group)
        return int(nbytes), int(count)


def _outcome(save: Save, fault: str | None, seconds: float) -> Outcome:
    return Outcome(
        step=save.contents.step,
        path=save.path,
        fault=fault,
        nbytes=save.nbytes,
        stall_seconds=save.stall_seconds,
        write_seconds=seconds,
        files=save.sealed,
    )
