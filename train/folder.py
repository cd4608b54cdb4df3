"""Whether a run's folder can be made and written, before a rank is there that would fail of it."""

import os
import platform
import tempfile
from pathlib import Path


def check_writable(run_dir: str | Path) -> None:
    """Leaves nothing there. Raises ValueError, with the cure, if this host could not make the folder or write to it."""
    where = Path(run_dir)
    while not os.path.lexists(where):
        where = where.parent
    try:
        # A folder as the run would make one, of a name of its own: all nodes look at once.
        with tempfile.TemporaryDirectory(prefix=".preflight_", dir=where):
            pass
    except OSError as fault:
        raise ValueError(
            f"{platform.node()} cannot write run_dir={run_dir}: {fault.strerror or fault} (at {where}); give it rights "
            "and room there, or name another"
        ) from None
