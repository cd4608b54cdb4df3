"""Decoding clips in children that can be killed: deadline, memory, second opinion, and what is remembered."""

import contextlib
import json
import logging
import os
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from data.errors import SampleError
from data.types import MediaSize
from data.visual import decode_child, decode_process
from data.visual.decode import ClipDecoder, ClipRequest, Decoded
from data.visual.decode_process import DecoderGone, DecoderProcess
from data.visual.video import choose_frames
from tests.data.changed_child import before_each_answer, changed_child
from tests.data.clips import numbered_clips, read_number
from tests.data.conftest import VIDEO, clip_bytes

Script = Callable[..., None]


@pytest.fixture(scope="module")
def decoder() -> Iterator[ClipDecoder]:
    decoder = ClipDecoder(20.0)
    yield decoder
    decoder.close()


@pytest.fixture
def child_with() -> Iterator[Script]:
    """Changes the script of children started from now on."""
    with contextlib.ExitStack() as stack:
        yield lambda old, new: stack.enter_context(changed_child(old, new))


def answering(body: str, log_file: Path) -> tuple[str, str]:
    """A change: `body` runs before each answer, and each request leaves a line in a file."""
    return before_each_answer(f"open({str(log_file)!r}, 'a').write(f'{{decoder}}\\n')\n{body}")


def ask(decoder: ClipDecoder, data: bytes, *indices: int, height: int = 28, width: int = 28) -> Decoded:
    return decoder.decode(ClipRequest(data=data, indices=np.array(indices), height=height, width=width))


def test_decord_and_pyav_agree_on_sizes_and_frames(decoder: ClipDecoder, clip: bytes) -> None:
    size = decoder.probe(clip)
    assert size == MediaSize(kind="video", height=48, width=64, frames=12, fps=8.0)
    peer = decode_child.PyAvReader(clip)
    assert peer.probe() == (12, 8.0, 48, 64)
    indices = [0, 3, 7, 11]
    found, name = ask(decoder, clip, *indices, height=28, width=56)
    assert name == decoder.name and name.startswith("decord 0.6.0")
    expected = decode_child.resize_frames(decode_child.PyAvReader(clip).frames(indices), 28, 56)
    assert found.shape == (4, 28, 56, 3)
    assert np.abs(found.astype(int) - expected).max() <= 2
    assert np.abs(found.mean(axis=(1, 2, 3)) - [10 + i * 235 // 12 for i in indices]).max() < 3


@pytest.mark.parametrize("name", sorted(numbered_clips()))
def test_frame_numbers_are_those_shown_whatever_the_container(decoder: ClipDecoder, name: str) -> None:
    clip = numbered_clips()[name]
    size = decoder.probe(clip.data)
    assert size.frames == clip.frames
    indices = np.unique(np.linspace(0, clip.frames - 1, 17).round().astype(int))
    found = ask(decoder, clip.data, *indices, height=96, width=128)
    assert [read_number(frame) for frame in found.frames] == indices.tolist()
    assert found.decoder.split()[0] == clip.decoder


def test_a_header_that_says_too_many_frames_is_not_decords(decoder: ClipDecoder) -> None:
    """dmlc/decord #373: a header says 431 frames where 300 are. The second opinion counts what is there."""
    clip = bytearray(numbered_clips()["mp4"].data)
    table = clip.index(b"stts")
    assert struct.unpack_from(">II", clip, table + 8) == (1, 90)
    struct.pack_into(">I", clip, table + 12, 131)
    assert decoder.probe(bytes(clip)).frames == 90
    with pytest.raises(
        SampleError, match=r"header says 131 frames, 90 are there.*has 90 frames, frame 130 was indexed"
    ):
        ask(decoder, bytes(clip), 0, 130)


def test_fewer_frames_than_indexed_is_a_bad_sample_with_the_numbers(decoder: ClipDecoder, clip: bytes) -> None:
    with pytest.raises(
        SampleError, match=r"decord: .*has 12 frames, frame 40 was.*pyav: .*has 12 frames, frame 40 was"
    ):
        ask(decoder, clip, 0, 40)


def test_a_broken_clip_is_a_sample_error_and_the_children_live_on(decoder: ClipDecoder, clip: bytes) -> None:
    for bad in (b"", b"not a clip", clip[: len(clip) // 3], clip.replace(b"moov", b"skip")):
        with pytest.raises(SampleError, match=r"cannot be decoded: decord: .*pyav: "):
            ask(decoder, bad, 0, 1)
        with pytest.raises(SampleError):
            decoder.probe(bad)
    assert ask(decoder, clip, 0, 11).frames.shape == (2, 28, 28, 3)


HANG = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"


def test_a_hang_costs_one_deadline_and_then_the_second_opinion_is_taken(
    tmp_path: Path, child_with: Script, clip: bytes
) -> None:
    child_with(*answering(HANG + "if decoder == 'decord': time.sleep(60)", tmp_path / "asked"))
    folder = tmp_path / "verdicts"
    decoder = ClipDecoder(2.0, verdicts=folder)
    assert decoder.name.startswith("decord")
    start = time.monotonic()
    first = ask(decoder, clip, 0, 11)
    assert 1.0 <= time.monotonic() - start < 50
    assert first.decoder.startswith("pyav")
    peer = list(decode_child.PyAvReader(clip).frames([0, 11]))
    assert np.array_equal(first.frames, decode_child.resize_frames(peer, 28, 28))
    assert np.array_equal(ask(decoder, clip, 0, 11).frames, first.frames)  # and decord is not asked: see below
    decoder.close()
    other = ClipDecoder(2.0, verdicts=folder)
    assert np.array_equal(ask(other, clip, 0, 11).frames, first.frames)
    other.close()
    patient = ClipDecoder(2.5, verdicts=folder)
    assert patient.expected(ClipRequest(data=clip, indices=np.array([0, 11]), height=28, width=28), "x")
    ask(patient, clip, 0, 11)
    patient.close()
    asked = (tmp_path / "asked").read_text().split()
    assert asked == ["decord", "pyav", "pyav", "pyav", "decord", "pyav"], "a longer deadline is a new chance"


def test_a_clip_that_no_decoder_ends_costs_one_deadline_ever(tmp_path: Path, child_with: Script, clip: bytes) -> None:
    child_with(*answering(HANG + "time.sleep(60)", tmp_path / "asked"))
    for again in (False, True):
        decoder = ClipDecoder(1.0, verdicts=tmp_path / "verdicts")
        assert decoder.name and decoder._name("pyav")
        start = time.monotonic()
        with pytest.raises(
            SampleError, match=r"decord: passed its deadline of 0\.5 s; pyav: passed its deadline of 0\.5"
        ):
            ask(decoder, clip, 0, 11)
        seconds = time.monotonic() - start
        assert again or 1.0 <= seconds < 50
        decoder.close()
    assert len((tmp_path / "asked").read_text().split()) == 2


@pytest.fixture
def crowded() -> Iterator[int]:
    """A core that four processes keep busy; its number."""
    core = min(os.sched_getaffinity(0))
    spin = f"import os; os.sched_setaffinity(0, {{{core}}})\nwhile os.getppid() == {os.getpid()}: pass"
    crowd = [subprocess.Popen([sys.executable, "-c", spin]) for _ in range(4)]
    yield core
    for each in crowd:
        each.kill()
        each.wait()


def test_time_without_a_core_is_not_on_a_clips_account(
    child_with: Script, clip: bytes, crowded: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a host with more to do than cores remembers sound clips as ones that cannot be decoded."""
    work = (
        f"os.sched_setaffinity(0, {{{crowded}}})\n"
        "until = time.process_time() + message[0]['work']\n"
        "while time.process_time() < until: pass"
    )
    child_with(*before_each_answer(work))
    child = DecoderProcess("pyav", 8 << 30)
    started = time.monotonic()
    with monkeypatch.context() as patch:
        patch.setattr(decode_process, "LATEST", 100)  # others may want this core, too
        reply, _ = child.ask({"do": "probe", "nbytes": len(clip), "work": 0.4}, clip, 1.0)
    assert time.monotonic() - started > 1.0, "the crowd kept it from nothing, so this shows nothing"
    assert reply["frames"] == 12 and child.spent < 1.0
    started = time.monotonic()
    with pytest.raises(DecoderGone, match=r"passed its deadline of 0\.5 s"):
        child.ask({"do": "probe", "nbytes": len(clip), "work": 60.0}, clip, 0.5)
    assert 0.5 < time.monotonic() - started < 50, "60 s of work were waited for"


def test_a_decoder_that_ends_while_it_starts_is_started_again(tmp_path: Path, child_with: Script, clip: bytes) -> None:
    once = tmp_path / "once"
    end = f"    if not os.path.exists({str(once)!r}):\n        open({str(once)!r}, 'w')\n        os._exit(7)\n"
    child_with("def main() -> None:\n", "def main() -> None:\n" + end)
    decoder = ClipDecoder(20.0)
    assert ask(decoder, clip, 0, 11).frames.shape == (2, 28, 28, 3)
    decoder.close()
    assert once.exists()


def test_a_decoder_that_never_starts_says_how_to_try_it(child_with: Script) -> None:
    child_with("def main() -> None:\n", "def main() -> None:\n    raise SystemExit(7)\n")
    with pytest.raises(RuntimeError, match=r"decord cannot be used: it does not start .*; try: "):
        ClipDecoder(20.0).probe(b"x")


def test_a_clip_has_a_deadline_of_its_length(decoder: ClipDecoder) -> None:
    decoder = ClipDecoder(10.0, timeout_per_second=0.5)
    for seconds, due in ((0.0, 10.0), (60.0, 40.0), (1e30, 3600.0)):
        request = ClipRequest(data=b"", indices=np.array([0]), height=28, width=28, seconds=seconds)
        assert decoder.deadline(request) == due


def test_a_decoder_above_its_memory_is_killed(tmp_path: Path, child_with: Script, clip: bytes) -> None:
    child_with(*answering("if decoder == 'decord': kept = b'x' * (500 << 20); time.sleep(600)", tmp_path / "asked"))
    decoder = ClipDecoder(250.0, memory_bytes=300 << 20)
    start = time.monotonic()
    found = ask(decoder, clip, 0, 11)
    assert time.monotonic() - start < 100, "it was its deadline"
    assert found.decoder.startswith("pyav")
    request = ClipRequest(data=clip, indices=np.array([0, 11]), height=28, width=28)
    assert decoder.expected(request, request.digest).startswith("pyav")
    decoder.close()


def test_address_space_is_limited_too(tmp_path: Path, child_with: Script, clip: bytes) -> None:
    child_with(*answering("if decoder == 'decord': np.empty(700 << 20, np.uint8)", tmp_path / "asked"))
    decoder = ClipDecoder(20.0, memory_bytes=300 << 20)
    assert ask(decoder, clip, 0, 11).decoder.startswith("pyav")
    decoder.close()


def test_a_child_that_is_killed_is_asked_again(
    decoder: ClipDecoder, tmp_path: Path, child_with: Script, clip: bytes
) -> None:
    """The host may have killed it, for its memory: that says nothing of the clip."""
    once = str(tmp_path / "once")
    body = f"if not os.path.exists({once!r}):\n    os.mkdir({once!r})\n    os.kill(os.getpid(), 9)"
    child_with(*answering(body, tmp_path / "asked"))
    mine = ClipDecoder(20.0)
    found = ask(mine, clip, 0, 11)
    assert found.decoder.startswith("decord") and np.array_equal(found.frames, ask(decoder, clip, 0, 11).frames)
    mine.close()


def test_a_clip_that_kills_its_decoder_twice_is_the_others(tmp_path: Path, child_with: Script, clip: bytes) -> None:
    child_with(*answering("if decoder == 'decord': os._exit(3)", tmp_path / "asked"))
    decoder = ClipDecoder(20.0, verdicts=tmp_path / "verdicts")
    assert ask(decoder, clip, 0, 11).decoder.startswith("pyav")
    # More than a pipe holds, so that the writer is still at it when the reader has gone.
    with pytest.raises(SampleError, match=r"decord: the decoder died \(exit status 3\); pyav: "):
        ask(decoder, bytes(4 << 20), 0, 1)
    asked = (tmp_path / "asked").read_text().split()
    assert asked[:3] == ["decord", "decord", "pyav"]
    assert not any("died" in path.read_text() for path in (tmp_path / "verdicts").glob("*")), "not for other processes"
    decoder.close()


def test_a_fork_decodes_by_a_child_of_its_own(decoder: ClipDecoder, clip: bytes) -> None:
    """dmlc/decord #194, #220: a decoder used on both sides of a fork gives wrong frames, or hangs."""
    expected = {height: ask(decoder, clip, 0, 5, 11, height=height).frames for height in (28, 56)}
    pid = os.fork()
    if pid == 0:  # pragma: no cover
        right = all(np.array_equal(ask(decoder, clip, 0, 5, 11, height=56).frames, expected[56]) for _ in range(5))
        decoder.close()
        os._exit(not right)
    for _ in range(5):
        assert np.array_equal(ask(decoder, clip, 0, 5, 11, height=28).frames, expected[28])
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert np.array_equal(ask(decoder, clip, 0, 5, 11, height=28).frames, expected[28]), "the parent's child lives on"


def test_closing_while_a_clip_is_decoded_says_nothing_of_the_clip(
    tmp_path: Path, child_with: Script, clip: bytes
) -> None:
    child_with(*answering("time.sleep(600)", tmp_path / "asked"))
    decoder = ClipDecoder(250.0, verdicts=tmp_path / "verdicts")
    assert decoder.name

    def close_once_asked() -> None:
        while not (tmp_path / "asked").exists():
            time.sleep(0.01)
        decoder.close()

    threading.Thread(target=close_once_asked, daemon=True).start()
    with pytest.raises(SampleError, match="closed"):
        ask(decoder, clip, 0, 11)
    assert not (tmp_path / "verdicts").exists() and len((tmp_path / "asked").read_text().split()) == 1
    decoder.close()


def test_a_torn_verdict_is_none(tmp_path: Path) -> None:
    request = ClipRequest(data=b"bad", indices=np.array([0, 1]), height=28, width=28)
    other = ClipDecoder(20.0, verdicts=tmp_path)
    for text in ("", "{", "[]", json.dumps({"key": "other", "reason": "r", "limits": {}})):
        with pytest.raises(SampleError):
            ask(other, request.data, 0, 1)
        other.close()
        other = ClipDecoder(20.0, verdicts=tmp_path)
        with pytest.raises(SampleError, match="cannot be decoded"):
            other.expected(request, request.digest)
        stored = sorted(tmp_path.iterdir())
        assert len(stored) == 2 and all(path.suffix == ".json" for path in stored)
        for path in stored:
            path.write_text(text)
        other.close()
        other = ClipDecoder(20.0, verdicts=tmp_path)
        assert other.expected(request, request.digest).startswith("decord")
    other.close()


def test_the_child_leaves_with_its_parent() -> None:
    code = (
        "import os\nfrom data.visual.decode import ClipDecoder\ndecoder = ClipDecoder(20.0)\ndecoder.name\n"
        "print(decoder._children['decord']._child.pid, flush=True)\nos.kill(os.getpid(), 9)\n"
    )
    child = int(subprocess.run([sys.executable, "-c", code], capture_output=True, check=False, timeout=200).stdout)
    deadline = time.monotonic() + 60
    while Path(f"/proc/{child}").exists() and time.monotonic() < deadline:
        if " Z " in Path(f"/proc/{child}/stat").read_text():
            return  # dead; nobody has collected it yet
        time.sleep(0.05)
    assert not Path(f"/proc/{child}").exists()


def test_pyav_stands_in_and_says_so_once(child_with: Script, caplog: pytest.LogCaptureFixture, clip: bytes) -> None:
    child_with("import threading\n", "import threading\nsys.modules['decord'] = None\n")
    decoder = ClipDecoder(20.0)
    with caplog.at_level(logging.WARNING):
        assert decoder.probe(clip).frames == 12
        decoder.close()
        assert ask(decoder, clip, 0, 1).frames.shape == (2, 28, 28, 3)
    decoder.close()
    assert decoder.name.startswith("pyav")
    assert sum("decord cannot be imported" in record.message for record in caplog.records) == 1


def test_a_one_frame_clip_is_repeated(decoder: ClipDecoder) -> None:
    clip = clip_bytes(frames=1)
    size = decoder.probe(clip)
    indices = choose_frames(size.frames, size.fps, VIDEO)
    assert indices.tolist() == [0, 0]
    frames = ask(decoder, clip, *indices).frames
    assert np.array_equal(frames[0], frames[1])
