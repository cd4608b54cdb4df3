"""Lines that a run tells of itself, on a disk that fills and is emptied again."""

import errno
import logging
import os
from pathlib import Path

import pytest

from train.lines import Lines


def test_what_a_full_disk_refuses_is_written_when_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text("of an earlier start\n")
    lines = Lines(path, ["kept\n"])
    room = [8]
    real = os.write

    def write(descriptor: int, data: bytes) -> int:
        if not room[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        count = real(descriptor, bytes(data[: room[0]]))
        room[0] -= count
        return count

    with caplog.at_level(logging.WARNING), monkeypatch.context() as patch:
        patch.setattr(os, "write", write)
        for number in range(5):
            lines.write(f"line {number}\n")
        assert path.read_text() == "kept\nline 0\nl" and len(caplog.records) == 1
        assert "No space left on device" in caplog.text
        room[0] = 10**6
        lines.write("line 5\n")
        assert path.read_text() == "kept\n" + "".join(f"line {number}\n" for number in range(6))
        room[0] = 3
        lines.write("line 6\n")
        lines.close()
    assert "metrics.jsonl lacks its last 4 bytes" in caplog.text and path.read_text().endswith("line 5\nlin")
