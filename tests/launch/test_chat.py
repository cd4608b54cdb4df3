"""`triptych chat` as a command: one question, a pipe, a terminal, and what is refused."""

import io
import os
import pty
import select
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from launch.answering.loaded import Loaded, load
from tests.launch.commands import end
from tests.launch.conftest import TOKENS, ask, save, talk_of
from train.config import RunConfig

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.usefixtures("one_thread")


def test_one_question_and_lines_from_a_pipe(
    seeing: RunConfig,
    loaded: Loaded,
    media: dict[str, Path],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    options = ["--device", "cpu", "--tokens", TOKENS]
    talk = talk_of(loaded)
    talk.show("image", media["one.png"])
    expected = ask(talk, "What is this?")
    assert end("chat", seeing.run_dir, "--prompt", "What is this?", "--image", media["one.png"], *options) == 0
    assert capsys.readouterr().out == expected + "\n"
    lines = f"/image {media['one.png']}\n\nWhat is this?\nand?\n/clear\n/help\nand?\n/quit\nnever\n"
    monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
    assert end("chat", seeing.run_dir, *options) == 0
    told = capsys.readouterr()
    assert told.out == f"{expected}\n{ask(talk, 'and?')}\n{ask(talk_of(loaded), 'and?')}\n"
    assert "/image PATH" in told.err


def test_bytes_that_are_no_text_are_replaced(
    words: RunConfig, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ["--device", "cpu", "--tokens", TOKENS]
    shown, raw = "\N{REPLACEMENT CHARACTER}a\N{REPLACEMENT CHARACTER}", b"\xffa\xfe"
    as_argument = os.fsdecode(raw)
    expected = ask(talk_of(load(words.run_dir, "cpu"), system=shown), shown)
    assert end("chat", words.run_dir, "--prompt", as_argument, "--system", as_argument, *options) == 0
    assert capsys.readouterr().out == expected + "\n"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(raw + b"\n"), encoding="utf-8"))
    assert end("chat", words.run_dir, "--system", as_argument, *options) == 0
    assert capsys.readouterr().out == expected + "\n"


@pytest.mark.parametrize("command", [["chat", "RUN", "--prompt", "?", "--tokens", "4"], ["checkpoint", "show", "RUN"]])
def test_a_closed_pipe_ends_a_command_quietly(command: list[str], words: RunConfig) -> None:
    """As in `| head -c 0`: the status is that of a program which the signal ended."""
    reading, writing = os.pipe()
    os.close(reading)
    told = subprocess.run(
        [sys.executable, "-m", "launch.cli", *(words.run_dir if word == "RUN" else word for word in command)],
        stdout=writing,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        cwd=ROOT,
        env=dict(os.environ, OMP_NUM_THREADS="1"),
        timeout=120,
        check=False,
    )
    os.close(writing)
    assert (told.returncode, told.stderr.decode()) == (141, "")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere"], "nowhere is no folder"),
        (["EMPTY"], "holds neither checkpoints nor a config.json"),
        (["RUN", "--image", "gone.png"], "gone.png: no such file"),
        (["RUN", "--image", "broken.png"], "broken.png: "),
        (["RUN", "--video", "broken.mp4"], "broken.mp4: clip of 700 bytes cannot be decoded"),
        (["RUN", "--image", "clip.mp4"], "clip.mp4: not a "),
        (["WORDS", "--image", "one.png"], "one.png: this model has no vision tower"),
        (["RUN", "--prompt", "left " * 300], "show fewer or smaller pictures"),
        (["RUN", "--tokenizer", "EMPTY"], "name the tokenizer's folder with --tokenizer"),
        (["RUN", "--device", "cuda"], "there is no CUDA device here"),
    ],
    ids=lambda value: "_".join(word.strip("-")[:10] for word in value) if isinstance(value, list) else "",
)
def test_what_is_wrong_is_one_line(
    arguments: list[str],
    said: str,
    seeing: RunConfig,
    words: RunConfig,
    media: dict[str, Path],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    if "cuda" in arguments and torch.cuda.is_available():
        pytest.skip("there is one")
    places = {"RUN": Path(seeing.run_dir), "WORDS": Path(words.run_dir), "EMPTY": tmp_path} | media
    asked = [] if "--prompt" in arguments else ["--prompt", "?"]
    assert end("chat", *(places.get(word, word) for word in arguments), *asked) == 2
    told = capfd.readouterr()
    assert told.out == ""
    assert told.err.startswith("triptych: ") and told.err.count("\n") == 1
    assert said in told.err


@pytest.mark.parametrize("words", [["--temperature", "-1"], ["--temperature", "nan"], ["--tokens", "0"], ["--nope"]])
def test_options_that_are_none_are_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert end("chat", "run", *words) == 2
    assert "usage: triptych" in capsys.readouterr().err


class Terminal:
    """A program at a terminal of its own."""

    def __init__(self, *command: str) -> None:
        self.pid, self._file = pty.fork()
        if self.pid == 0:
            os.chdir(ROOT)
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # ignored, and so inherited, where tests run in the background
            os.execve(sys.executable, [sys.executable, *command], dict(os.environ, OMP_NUM_THREADS="1", TERM="dumb"))
        self.seen = ""

    def wait_for(self, text: str, seconds: float = 120.0) -> None:
        until = time.monotonic() + seconds
        while text not in self.seen:
            ready, _, _ = select.select([self._file], [], [], max(0.0, until - time.monotonic()))
            assert ready, f"no {text!r} after {seconds} s in {self.seen!r}"
            try:
                self.seen += os.read(self._file, 65536).decode("utf-8", errors="replace")
            except OSError:  # the other side has closed
                raise AssertionError(f"ended without {text!r} in {self.seen!r}") from None
        self.seen = self.seen.partition(text)[2]

    def type(self, text: str) -> None:
        os.write(self._file, text.encode())

    def interrupt(self, text: str) -> None:
        """Ctrl-C until `text` is seen: readline shows its prompt an instant before it heeds signals."""
        for _ in range(30):
            self.type("\x03")
            with suppress(AssertionError):
                return self.wait_for(text, 2.0)
        raise AssertionError(f"Ctrl-C did not lead to {text!r}")

    def leave(self) -> int:
        """Ctrl-D until the program ends; its exit code."""
        for _ in range(30):
            self.type("\x04")
            for _ in range(20):
                found, status = os.waitpid(self.pid, os.WNOHANG)
                if found:
                    return os.waitstatus_to_exitcode(status)
                time.sleep(0.1)
        raise AssertionError("Ctrl-D did not end it")


def test_at_a_terminal(words: RunConfig, tmp_path: Path) -> None:
    """A prompt, an answer stopped by Ctrl-C, a mistake that ends nothing, and Ctrl-D."""
    language = replace(words.model.language, max_positions=1_000_000)
    endless = save(replace(words, run_dir=str(tmp_path), model=replace(words.model, language=language)))
    terminal = Terminal("-m", "launch.cli", "chat", endless.run_dir, "--device", "cpu", "--tokens", "900000")
    try:
        terminal.wait_for("/help lists commands")
        terminal.wait_for("> ")
        terminal.type("What is this?\n")
        terminal.wait_for("What is this?\r\n")
        terminal.wait_for("e")  # an answer begins
        terminal.interrupt("\n> ")
        terminal.type("/image gone.png\n")
        terminal.wait_for("no vision tower")
        terminal.wait_for("> ")
        terminal.interrupt("(Ctrl-D ends)")
        terminal.wait_for("> ")
        assert terminal.leave() == 0
    except BaseException:
        os.kill(terminal.pid, signal.SIGKILL)
        os.waitpid(terminal.pid, 0)
        raise
