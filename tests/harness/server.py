"""The process that worlds and lives are forked from: it has imported what they need, which costs ten seconds."""

import gc
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


def forget_the_server() -> None:
    """First of all in what was forked. Else each collection looks through all that was imported, for a third of a
    second, and DeepSpeed's bf16 optimizer alone asks for fourteen."""
    gc.freeze()


def end_server() -> None:
    """To be called when all that was forked has ended. The next process starts another one."""
    forkserver._forkserver._stop()  # type: ignore[attr-defined]
