"""A run's uploads, beside training: rank 0 has one thread that starts a process for each (train/checkpoint/upload.py).

One at a time. What is sealed meanwhile waits, and of several only the newest does. A try that fails is told and, if
that can help, followed by another after a pause, until a newer checkpoint takes its place.
"""

import json
import subprocess
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from data.child import end_child, start_child
from train.checkpoint import commits
from train.checkpoint.remote import Remote
from train.checkpoint.upload import Job, Sent

FIRST_PAUSE, LONGEST_PAUSE = 5.0, 300.0
"""Seconds between two tries; they double."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Upload:
    """What became of one try, or of a checkpoint that had none."""

    step: int
    name: str
    """Of the folder."""
    sent: Sent
    tries: int
    """This one included."""

    @property
    def line(self) -> str | None:
        """What the terminal should say; None if all is well."""
        if self.sent.fault is not None:
            then = "it will not be tried again" if self.sent.is_over else "it will be tried again"
            return f"{self.name} was not uploaded: {self.sent.fault}; {then}"
        if self.sent.left is not None:
            return f"{self.name} was uploaded, but older ones stay in the bucket for now: {self.sent.left}"
        return None


class Uploads:
    """Uploads of one start of a run. Methods may be called from any thread."""

    def __init__(
        self,
        remote: Remote,
        *,
        bytes_per_second: float,
        keep: int,
        keep_every: int | None,
        first_pause: float = FIRST_PAUSE,
    ) -> None:
        """Args:
        remote: where to.
        bytes_per_second: budget.
        keep, keep_every: what stays there, as in a run's own folder.
        first_pause: seconds after the first try that fails.
        """
        self.remote = remote
        self._bytes_per_second = bytes_per_second
        self._keep, self._keep_every = keep, keep_every
        self._first_pause = first_pause
        self._changed = threading.Condition()
        self._waiting: Path | None = None
        self._current: Path | None = None
        self._child: subprocess.Popen[bytes] | None = None
        self._is_over = False
        self._told: list[Upload] = []
        threading.Thread(target=self._run, name="uploads", daemon=True).start()

    def offer(self, path: Path) -> None:
        """Have a sealed checkpoint uploaded; one that still waits for its turn gives it up."""
        with self._changed:
            if self._waiting is not None:
                self._tell(self._waiting, Sent(fault=f"{path.name} was there before its turn came"), 0)
            self._waiting = path
            self._changed.notify_all()

    @property
    def held(self) -> frozenset[str]:
        """Names of the folders that must not go away now."""
        with self._changed:
            return frozenset(path.name for path in (self._current, self._waiting) if path is not None)

    def poll(self) -> list[Upload]:
        """What is new since the last call."""
        with self._changed:
            told, self._told = self._told, []
            return told

    def finish(self, seconds: float) -> str | None:
        """Wait until all is uploaded, at most so long, and end. What is not; None if all is."""
        end = time.monotonic() + seconds
        with self._changed:
            self._changed.wait_for(lambda: self._current is None and self._waiting is None, max(0.0, seconds))
            left = [path.name for path in (self._current, self._waiting) if path is not None]
            self._is_over = True
            child = self._child
            self._changed.notify_all()
        if child is not None:
            child.kill()
        late = time.monotonic() > end
        return f"{' and '.join(left)} not uploaded" + (f" within {seconds:g} s" if late else "") if left else None

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting is not None or self._is_over)
                if self._is_over:
                    return
                self._current, self._waiting = self._waiting, None
                path = self._current
            assert path is not None
            self._upload(path)
            with self._changed:
                self._current = None
                self._changed.notify_all()

    def _upload(self, path: Path) -> None:
        """One checkpoint, until it is there, cannot be, or a newer one waits."""
        pause = self._first_pause
        tries = 0
        while True:
            tries += 1
            sent = self._try(path)
            with self._changed:
                if self._is_over:
                    return
                self._tell(path, sent, tries)
                if sent.is_over:
                    return
                self._changed.wait_for(lambda: self._waiting is not None or self._is_over, pause)
                if self._is_over:
                    return
                if self._waiting is not None:
                    self._tell(path, Sent(fault=f"{self._waiting.name} takes its place"), tries)
                    return
            pause = min(2 * pause, LONGEST_PAUSE)

    def _try(self, path: Path) -> Sent:
        job = Job(
            folder=str(path),
            address=self.remote.address,
            oss=asdict(self.remote.oss),
            bytes_per_second=self._bytes_per_second,
            keep=self._keep,
            keep_every=self._keep_every,
        )
        started = time.monotonic()
        try:
            child = start_child("train.checkpoint.upload", job.to_json())
        except OSError as error:
            return Sent(fault=f"its process could not be started: {error}", is_over=False)
        with self._changed:
            self._child = child
            is_over = self._is_over
        try:
            if is_over:
                child.kill()
            assert child.stdout is not None
            reply = child.stdout.read()
            code = child.wait()
            return Sent(**json.loads(reply))
        except (OSError, ValueError, TypeError):
            seconds = time.monotonic() - started
            return Sent(fault=f"its process ended with {code} and no word", seconds=seconds, is_over=False)
        finally:
            with self._changed:
                self._child = None
            end_child(child)

    def _tell(self, path: Path, sent: Sent, tries: int) -> None:
        step = commits.step_of(path.name)
        assert step is not None
        self._told.append(Upload(step=step, name=path.name, sent=sent, tries=tries))
