"""Sizes of pictures, found in a child process that a hostile picture may crash or hang."""

import json
import select
import subprocess
import tempfile
from collections.abc import Sequence
from typing import Any

from data.child import end_child, start_child
from data.errors import SampleError

PICTURE_SECONDS = 30.0  # the largest picture that is allowed decodes in a tenth of it
START_SECONDS = 60.0  # to import Pillow from a cold network file system
BATCH_PICTURES = 256  # a request must fit a pipe, so that writing it never waits for the child
BATCH_BYTES = 64 << 20

Probed = tuple[int, int] | SampleError


class PictureProbe:
    """One child at a time, started on first use, which is asked about many pictures at once. For one thread at a time.

    Without `decode` the child parses headers alone; with it every pixel is decoded as well, some ten times slower.
    """

    def __init__(self, decode: bool = False, seconds: float | None = None) -> None:
        self._decode = decode
        self._seconds = PICTURE_SECONDS if seconds is None else seconds
        self._child: subprocess.Popen[bytes] | None = None
        # Without names, so nothing stays after SIGKILL. Replies go to a file because a pipe would wake us for each.
        self._pictures = tempfile.TemporaryFile(prefix="triptych-pictures-")  # noqa: SIM115
        self._replies = tempfile.TemporaryFile(prefix="triptych-replies-")  # noqa: SIM115

    def sizes(self, pictures: Sequence[bytes]) -> list[Probed]:
        """(height, width) of each picture as shown, or why it has none.

        A picture that passes its deadline, or ends the child twice, is such a reason; the next one meets a new child.
        """
        found: list[Probed] = []
        ended = -1  # the picture that ended the last child
        while len(found) < len(pictures):
            found += self._ask(_batch(pictures[len(found) :]))
            if isinstance(found[-1], _Ended):
                place = len(found) - 1
                if place != ended and not found[-1].late:
                    found.pop()  # it may not have been the picture: whoever is short of memory kills something
                ended = place
        return found

    def close(self) -> None:
        """End the child and forget the pictures."""
        self._end()
        self._pictures.close()
        self._replies.close()

    def _ask(self, pictures: Sequence[bytes]) -> list[Probed]:
        """Replies, in order, up to and with the first picture that ended the child."""
        child = self._child or self._start()
        self._replies.truncate(0)
        self._pictures.seek(0)
        for data in pictures:
            self._pictures.write(data)
        self._pictures.flush()
        assert child.stdin is not None
        try:
            child.stdin.write(json.dumps([len(data) for data in pictures]).encode() + b"\n")
            child.stdin.flush()
        except BrokenPipeError:  # killed while it had nothing to do
            self._end()
            return self._ask(pictures)
        answered = 0
        while (done := self._wait(self._seconds)) is None and len(self._answers()) > answered:
            answered = len(self._answers())
        if not done:
            self._end()
        found: list[Probed] = [
            SampleError(reply) if isinstance(reply, str) else (reply[0], reply[1]) for reply in self._answers()
        ]
        if len(found) < len(pictures):
            why = f"passed its deadline of {self._seconds} s" if done is None else "ended its decoder"
            found.append(_Ended(f"picture of {len(pictures[len(found)])} bytes {why}", late=done is None))
        return found

    def _answers(self) -> list[Any]:
        """What the child has said of the last request so far."""
        self._replies.seek(0)
        return [json.loads(line) for line in self._replies.read().splitlines(keepends=True) if line.endswith(b"\n")]

    def _wait(self, seconds: float) -> bool | None:
        """Whether the child said that it is done, and not that it has ended; None if it says nothing for so long."""
        assert self._child is not None and self._child.stdout is not None
        if not select.select([self._child.stdout], [], [], seconds)[0]:
            return None
        return bool(self._child.stdout.readline())

    def _start(self) -> "subprocess.Popen[bytes]":
        handed = self._pictures.fileno(), self._replies.fileno()
        how = "decode" if self._decode else "parse"
        self._child = start_child("data.index.probe_child", *map(str, handed), how, pass_fds=handed)
        if not self._wait(START_SECONDS):
            self._end()
            raise RuntimeError(
                "the process that looks at pictures does not start; try: python -m data.index.probe_child"
            )
        return self._child

    def _end(self) -> None:
        child, self._child = self._child, None
        if child is not None:
            end_child(child)


class _Ended(SampleError):
    def __init__(self, text: str, *, late: bool) -> None:
        super().__init__(text)
        self.late = late


def _batch(pictures: Sequence[bytes]) -> Sequence[bytes]:
    """The first of them, as many as are asked about at once; at least one."""
    total = 0
    for count, data in enumerate(pictures[:BATCH_PICTURES]):
        total += len(data)
        if total > BATCH_BYTES:
            return pictures[: max(1, count)]
    return pictures[:BATCH_PICTURES]
