"""What goes into a save, and what became of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from train.checkpoint.boxes import Chunk
from train.checkpoint.commits import FileEntry

LOST = "are not as they were written, so no checkpoint may refer to them"
"""Said of files of earlier checkpoints, which the next save writes anew."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Contents:
    """What a rank gives to a save."""

    step: int
    files: Mapping[str, Sequence[Chunk]]
    """This rank's boxes by the file they go to; names are unique over the ranks. A file without a box is not made."""
    told: Mapping[str, Any]
    """What JSON can hold, for state.json; rank 0's is written."""
    recipe: str
    """The resolved recipe, YAML; rank 0's is written."""
    records: Sequence[Mapping[str, Any]] = ()
    """Samples that could not be used; those of all ranks are written."""
    kept: Mapping[str, FileEntry] = field(default_factory=dict)
    """Files of earlier checkpoints of this run that are as they were; rank 0's are believed."""

    @property
    def nbytes(self) -> int:
        return sum(chunk.data.nbytes for chunks in self.files.values() for chunk in chunks)


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What became of one save; the same on every rank, but for `stall_seconds`."""

    step: int
    path: Path
    fault: str | None
    """Why it counts for nothing; None: it was sealed."""
    nbytes: int
    """Of tensors, written by all ranks together."""
    stall_seconds: float
    """By which this rank's training was held up: the copy, and waiting for the save before."""
    write_seconds: float
    """From the copy to the verdict."""
    files: Mapping[str, FileEntry] = field(default_factory=dict)
    """What the commit holds, on rank 0."""

    @property
    def lost_files(self) -> bool:
        """Whether it was given up because files are gone that it should have referred to."""
        return self.fault is not None and LOST in self.fault
