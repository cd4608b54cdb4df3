"""Where a process is in its work: told by its main thread, readable by its neighbours even after it was killed."""

import mmap
import os
import signal
import struct
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from parallel.pace import Spent

PHASES = ("start", "data", "forward", "backward", "agree", "reduce", "update", "record", "save", "evaluate", "end")
"""What a main thread can be at, in the order of a step."""
OPEN_ENDED = ("start", "save", "end")
"""Phases whose local work has no natural limit: only waiting for other ranks can last too long there."""

State = Literal["alive", "stopped", "gone"]
"""Of a process; stopped is what SIGSTOP does."""

_RECORD = struct.Struct("<6q")


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """What a main thread told last."""

    changes: int = 0
    """How often it has told anything."""
    phase: str = "start"
    step: int = 0
    """Counted from 1; 0 before the first."""
    microbatch: int | None = None
    """Number within the replica's step, from 0; in forward, backward and evaluate alone."""
    data: tuple[int, int] = (0, 0)
    """Where the rows of the step begin, as the trainer counts them."""

    @property
    def progress(self) -> tuple[int, int]:
        """Larger is further. Forward and backward of different microbatches overlap, so they count as one phase."""
        return self.step, PHASES.index("forward" if self.phase == "backward" else self.phase)

    @property
    def steps_done(self) -> int:
        """Steps of the stage that are finished."""
        return self.step if self.phase in ("record", "save", "evaluate", "end") else max(0, self.step - 1)

    def __str__(self) -> str:
        step = f"step {self.step}, " if self.step else ""
        return f"{step}{self.phase}" + (f", microbatch {self.microbatch}" if self.microbatch is not None else "")


class Board:
    """What a main thread writes its place on. Telling takes about a microsecond: no lock, no I/O."""

    def __init__(self, memory: Any = None) -> None:
        """`memory` is that of a `SharedMemory`; without one nobody outside this process can read along."""
        self._memory = bytearray(_RECORD.size) if memory is None else memory
        self._changes = self._step = 0
        self._data = (0, 0)
        self.spent = Spent()
        """What the steps have taken of this rank's own work."""
        self.tell("start")

    def begin_step(self, step: int, data: tuple[int, int]) -> None:
        """Say that `step` (from 1) begins, which it does by fetching the rows at `data`."""
        self._step, self._data = step, data
        self.tell("data")

    def look_at(self, data: tuple[int, int]) -> None:
        """Say that what comes next is about the rows at `data`, of the evaluation's own plan."""
        self._data = data

    def tell(self, phase: str, microbatch: int | None = None) -> None:
        """Say what comes next."""
        self._changes += 1
        number = -1 if microbatch is None else microbatch
        _RECORD.pack_into(self._memory, 0, self._changes, self._step, PHASES.index(phase), number, *self._data)

    def read(self) -> Place:
        """What was told last."""
        return read_place(self._memory)


def read_place(memory: Any) -> Place:
    """The place that a board's memory holds."""
    changes, step, phase, number, *data = _RECORD.unpack_from(memory)
    return Place(
        changes=changes,
        phase=PHASES[phase],
        step=step,
        microbatch=None if number < 0 else number,
        data=(data[0], data[1]),
    )


class SharedMemory:
    """Memory for a board that neighbours can map. Theirs stays when this process dies, and nothing is left behind.

    What a killed process had sent off would be seconds old, where the microbatch that crashed a kernel is wanted.
    """

    def __init__(self) -> None:
        self.fd = -1
        self.memory: Any = bytearray(_RECORD.size)
        if hasattr(os, "memfd_create"):  # Linux
            self.fd = os.memfd_create("triptych-place")
            os.ftruncate(self.fd, _RECORD.size)
            self.memory = mmap.mmap(self.fd, _RECORD.size)

    def close(self) -> None:
        """Let no further neighbour in."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


class Neighbour:
    """A process of this host that the same parent started. Linux alone tells about it."""

    def __init__(self, pid: int, fd: int) -> None:
        """`fd` is its own number of its `SharedMemory`, -1 if it has none."""
        self._pid = pid
        self._memory: Any = None
        # Another container of the same host may know another process by this number.
        if fd >= 0 and self.state() != "gone":
            with suppress(OSError), Path(f"/proc/{pid}/fd/{fd}").open("rb") as file:
                self._memory = mmap.mmap(file.fileno(), _RECORD.size, access=mmap.ACCESS_READ)

    def place(self) -> Place | None:
        """Where its main thread is, or was when it died; None if it does not show."""
        return read_place(self._memory) if self._memory is not None else None

    def state(self) -> State:
        """What the host says of the process."""
        try:
            # The name before the last parenthesis may hold spaces.
            letter, parent = Path(f"/proc/{self._pid}/stat").read_text().rpartition(")")[2].split()[:2]
        except OSError:
            return "gone"
        if int(parent) != os.getppid() or letter in "ZX":
            return "gone"
        return "stopped" if letter == "T" else "alive"

    def kill(self) -> None:
        """End it, whatever it does; torchrun itself waits 30 s before it does so."""
        if self.state() != "gone":
            with suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGKILL)


def kill_the_others() -> None:
    """End all processes of this one's group but itself. They hear no signal that could be refused (data/child.py)."""
    if not Path("/proc/self/stat").exists():
        os.killpg(0, signal.SIGTERM)
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError, ValueError, IndexError):
            group = int(path.read_text().rpartition(")")[2].split()[2])
            if group == os.getpgrp() and int(path.parent.name) != os.getpid():
                os.kill(int(path.parent.name), signal.SIGKILL)
