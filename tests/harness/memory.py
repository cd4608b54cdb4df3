"""Peak memory of a stretch of code as the kernel counts it, and the pages of a file that a process has touched."""

import ctypes
import gc
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_CLEAR_REFS = Path("/proc/self/clear_refs")
_M_MMAP_THRESHOLD = -3  # mallopt(3)
_LARGE_BLOCK = 256 * 1024


class CannotMeasure(RuntimeError):
    """This kernel does not let a process reset its own peak: there is no figure, rather than a wrong one."""


@dataclass
class Peak:
    """Bytes of resident memory beyond those at the start; set when the block ends."""

    growth: int = -1


@contextmanager
def peak_memory() -> Iterator[Peak]:
    """Measure the growth of resident memory inside the block: VmHWM at its end over VmRSS at its start.

    Mapped file pages count while they are mapped, memory that was allocated and never written does not. Freed heap is
    given back first, or it would be used again unseen; and from then on this process gives back each large block as it
    is freed. glibc would let its threshold rise to the largest block that was ever freed, up to 32 MiB, and keep what
    is smaller: the figure would depend on what ran before.

    What is done for the first time imports code and compiles it, which counts too: do it once before.

    Raises:
        CannotMeasure: /proc/self/clear_refs is not there or not writable (it is absent outside of Linux and read-only
            in some containers).
    """
    gc.collect()
    libc = ctypes.CDLL(None)
    assert libc.mallopt(_M_MMAP_THRESHOLD, _LARGE_BLOCK), "glibc refused"
    libc.malloc_trim(0)
    try:
        _CLEAR_REFS.write_text("5")  # sets VmHWM to VmRSS (proc(5))
    except OSError as error:
        raise CannotMeasure(f"peak memory cannot be reset: {error}") from error
    peak = Peak()
    start = _status("VmRSS")
    yield peak
    peak.growth = _status("VmHWM") - start


def _status(field: str) -> int:
    found = re.search(rf"^{field}:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    if found is None:
        raise CannotMeasure(f"/proc/self/status has no {field}")
    return int(found[1]) * 1024


def touched_pages(path: str | Path) -> int:
    """Bytes of mapped pages of one file that this process has touched since it mapped them."""
    total, inside, name = 0, False, f" {Path(path).resolve()}"
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if not line[0].isupper():  # a mapping's addresses; its fields follow
            inside = line.endswith(name)
        elif inside and line.startswith("Rss:"):
            total += int(line.split()[1]) * 1024
    return total
