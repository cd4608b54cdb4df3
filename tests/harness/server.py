"""The process that worlds and lives are forked from. It has imported what they need, which costs a process ten seconds."""

import multiprocessing as mp
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext

IMPORTED = (
    "tests.harness.lives",
    # What the first rows of a run, the first optimizer and the first save would import.
    "deepspeed.ops.adam",
    "numba.np.arraymath",
    "numba.np.linalg",
    "numpy.ma",
    "scipy.linalg",
)


def fork_context() -> ForkServerContext:
    """Its processes are forked from the one server of this process."""
    made = mp.get_context("forkserver")
    made.set_forkserver_preload(list(IMPORTED))
    return made


def end_server() -> None:
    """To be called when all that was forked has ended. The next process starts another one."""
    forkserver._forkserver._stop()  # type: ignore[attr-defined]
