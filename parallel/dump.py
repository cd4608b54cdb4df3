"""What each rank leaves of itself where a job ends badly: RUN/faults/TIME_rank_R/rank_NNNNN.txt, beside the report."""

import os
import threading
from contextlib import suppress
from pathlib import Path

from parallel.grid import Grid
from parallel.verdict import Answer, Facts, Names, alone, name_of, place_of, samples_at


def dump_own(folder: str, answer: Answer, grid: Grid, names: Names | None, seconds: float) -> None:
    """Write this rank's file, in at most `seconds`: what the rank hangs in may be the very disk."""
    write = threading.Thread(target=lambda: keep(_path(folder, answer.rank), alone(answer, grid, names)), daemon=True)
    write.start()
    write.join(seconds)


def dump_lost(folder: str, facts: Facts, names: Names | None) -> None:
    """Write what is known of the ranks that do not answer, so that every rank has a file."""
    for rank, lost in facts.lost.items():
        place, note = place_of(rank, facts)
        lines = [f"{name_of(rank, facts.grid)}: {f'{place}{note}; ' if place else ''}{lost.state}"]
        if place is not None and place.step and names is not None:
            lines += samples_at(place, names, facts.grid.coordinates(rank)[0])
        keep(_path(folder, rank), "\n".join([*lines, "no stack, as it does not answer", ""]))


def keep(path: Path, message: str) -> None:
    """Write a message to a new file; where that fails, say so and no more."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("x") as file:
            file.write(message)
    except OSError as error:
        say(f"not kept: {error}\n")


def say(text: str) -> None:
    """Print to stderr past Python's own buffer: a main thread that was stopped while it printed still has its lock."""
    data = text.encode(errors="replace")
    with suppress(OSError):
        while data:
            data = data[os.write(2, data) :]


def _path(folder: str, rank: int) -> Path:
    return Path(folder) / f"rank_{rank:05d}.txt"
