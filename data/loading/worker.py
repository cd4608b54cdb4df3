"""The process that reads rows: `python -m data.loading.worker FD`, started by pool.py, ended without regret.

Requests and answers go over a socket, pickled: both ends are this program. Arrays of a row go through memory without a
name, so nothing is left behind whoever is killed, and /dev/shm may be as small as a container makes it.
"""

import contextlib
import errno
import mmap
import os
import pickle
import signal
import socket
import struct
import sys
import traceback
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from data.child import leave_with_parent
from data.plan.plan import RowPlan
from data.visual.cache_file import Use

_HEAD = struct.Struct("<Q")
_ALIGN = 64


class Task(NamedTuple):
    """One row to read."""

    number: tuple[int, int]
    """Step and place in it, as the loader counts."""
    row: RowPlan
    bad: Mapping[tuple[int, int], str] = MappingProxyType({})
    """Samples that ended a worker before -> why they are not tried again."""
    uses: Mapping[tuple[int, int], Use] = MappingProxyType({})
    """When samples are read again, for the decode cache."""


def send(sock: socket.socket, message: Any, payload: Any = None) -> None:
    """One message; the numpy arrays of `payload` go with it in a memory file.

    Raises MemoryError, before anything is sent, if there is no room for them.
    """
    buffers: list[pickle.PickleBuffer] = []
    body = pickle.dumps(payload, protocol=5, buffer_callback=buffers.append)
    views = [buffer.raw() for buffer in buffers]
    sizes = [len(view) for view in views]
    text = pickle.dumps((message, body, sizes))
    if not views:
        sock.sendall(_HEAD.pack(len(text)) + text)
        return
    places, total = _places(sizes)
    with _room_for(total):
        fd = os.memfd_create("triptych-row", os.MFD_CLOEXEC)
    try:
        with _room_for(total):
            os.ftruncate(fd, max(total, 1))
            memory = mmap.mmap(fd, max(total, 1))
        with memory:
            for place, view in zip(places, views, strict=True):
                memory[place : place + len(view)] = view
        socket.send_fds(sock, [_HEAD.pack(len(text))], [fd])
        sock.sendall(text)
    finally:
        os.close(fd)


def receive(sock: socket.socket) -> tuple[Any, Any] | None:
    """A message and its payload, whose arrays lie in the memory file; None when the other side has gone.

    Raises MemoryError if there is no room for them.
    """
    head, fds, _, _ = socket.recv_fds(sock, _HEAD.size, 1)
    try:
        head += _exactly(sock, _HEAD.size - len(head)) if head else b""
        if len(head) < _HEAD.size:
            return None
        (length,) = _HEAD.unpack(head)
        text = _exactly(sock, length)
        if len(text) < length:
            return None
        message, body, sizes = pickle.loads(text)
        if not fds:
            return message, pickle.loads(body)
        places, total = _places(sizes)
        with _room_for(total):
            memory = memoryview(mmap.mmap(fds[0], max(total, 1)))
        views = [memory[place : place + size] for place, size in zip(places, sizes, strict=True)]
        return message, pickle.loads(body, buffers=views)
    finally:
        for fd in fds:
            os.close(fd)


@contextlib.contextmanager
def _room_for(total: int) -> Iterator[None]:
    """What the kernel says when memory is short, in words of the recipe."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.ENOMEM):
            raise
        raise MemoryError(
            f"no memory for a row of {total} bytes on its way from a data worker to the trainer ({error}); give the "
            f"host or container more, or lower data.workers, data.prefetch_steps or data.patches_per_row"
        ) from None


def _places(sizes: list[int]) -> tuple[list[int], int]:
    places, total = [], 0
    for size in sizes:
        places.append(total)
        total += -(-size // _ALIGN) * _ALIGN
    return places, total


def _exactly(sock: socket.socket, length: int) -> bytes:
    parts = []
    while length > 0 and (part := sock.recv(min(length, 1 << 20))):
        parts.append(part)
        length -= len(part)
    return b"".join(parts)


def main() -> None:
    """Read rows until the other side has gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the trainer decides
    leave_with_parent()  # a row may take minutes, in which nobody looks at the socket
    sock = socket.socket(fileno=int(sys.argv[1]))
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        _serve(sock)


def _serve(sock: socket.socket) -> None:
    from data.loading.rows import open_reader

    opened = receive(sock)
    if opened is None:
        return
    try:
        reader = open_reader(opened[0])
    except Exception as error:
        send(sock, ("failed", None, _sendable(error)))
        return
    send(sock, ("ready",))
    while (received := receive(sock)) is not None:
        task: Task = received[0]
        try:
            row, records = reader.read(task.row, task.bad, task.uses, lambda sample: send(sock, ("at", sample)))
            # A worker that dies of sending would be taken for one that its last sample killed.
            send(sock, ("done", task.number, records, reader.stats()), row)
        except Exception as error:
            send(sock, ("failed", task.number, _sendable(error)))
    reader.close()


def _sendable(error: Exception) -> Exception:
    """The error itself where the other side can have it, else its words."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError("".join(traceback.format_exception(error)))
    return error


if __name__ == "__main__":
    main()
