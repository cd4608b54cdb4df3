"""What the threads of this process are doing. Stacks hold lines of source and no value of any variable."""

import faulthandler
import linecache
import sys
import threading
import traceback
from collections.abc import Iterator
from types import FrameType

_COLLECTIVES = ("/torch/distributed/distributed_c10d.py", "/torch/distributed/rendezvous.py")
_BACKWARD = "/torch/autograd/graph.py"


def depth() -> int:
    """How many calls the caller's caller is in."""
    return len(list(_outwards(sys._getframe(2))))


def main_stack(outermost: int) -> str:
    """The main thread's stack, innermost call last, without the `outermost` calls that led to what is of interest."""
    return "".join(traceback.format_stack(_main_frame())[outermost:])


def other_stacks() -> str:
    """Stacks of all threads but the main one and the caller's, each under its thread's name."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    own = (threading.main_thread().ident, threading.get_ident())
    told = [
        f"thread {names.get(ident, ident)}\n" + "".join(traceback.format_stack(frame))
        for ident, frame in sys._current_frames().items()
        if ident not in own
    ]
    return "".join(told)


def tell_if_held(seconds: float) -> None:
    """Print all stacks to stderr unless this is called again in time: code that never gives Python's lock back keeps
    every thread of the process from telling, the watch as well. Python's own timer needs no lock."""
    faulthandler.dump_traceback_later(seconds, file=2)


def is_not_held() -> None:
    """End what `tell_if_held` began."""
    faulthandler.cancel_dump_traceback_later()


def waits_for_ranks() -> tuple[int, ...] | None:
    """What tells one wait of the main thread for other ranks from the next; None while it does something else."""
    frame = _main_frame()
    if frame is None:
        return None
    if frame.f_code.co_filename.endswith(_BACKWARD):
        # CUDA runs backward in a thread of its own, and the main thread waits for that.
        waiting = [other for other in sys._current_frames().values() if _waits(other)]
        return _spot(waiting[0]) if waiting else None
    return _spot(frame) if _waits(frame) else None


def _waits(frame: FrameType) -> bool:
    """Whether the innermost call is one into a process group, or for a message that is under way."""
    if frame.f_code.co_filename.endswith(_COLLECTIVES):
        return True
    # A wait of Python's own (an event, a queue, a process) has frames of its own further in. Between two lines a frame
    # of a running thread has no line at all.
    return ".wait()" in linecache.getline(frame.f_code.co_filename, frame.f_lineno or 0)


def _spot(frame: FrameType) -> tuple[int, ...]:
    return tuple(number for caller in _outwards(frame) for number in (id(caller), caller.f_lasti))


def _main_frame() -> FrameType | None:
    """Where the main thread was when a handler of this package took it over, or is."""
    innermost = sys._current_frames().get(threading.main_thread().ident or 0)
    frames = list(_outwards(innermost))
    for frame in frames:
        if frame.f_code.co_name == "park_main_thread":
            return frame.f_back
    return innermost


def _outwards(frame: FrameType | None) -> Iterator[FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back
