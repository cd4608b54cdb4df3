"""Turns of a conversation against the whole of it fed at once, and what may reach a terminal."""

from pathlib import Path
from typing import Any

import pytest

from launch.answering import conversation as conversation_module
from launch.answering.conversation import printable, whole_characters
from launch.answering.generate import generate
from launch.answering.loaded import Loaded
from tests.data.conftest import clip_bytes, picture_bytes
from tests.launch.conftest import TOKENS, ask, plainly, prompt_of, shown, talk_of

pytestmark = pytest.mark.usefixtures("one_thread")


def test_a_conversation_is_what_the_whole_of_it_gives(loaded: Loaded, media: dict[str, Path]) -> None:
    talk = talk_of(loaded, system="You see.")
    talk.show("image", media["one.png"])
    talk.show("video", media["clip.mp4"])
    first = ask(talk, "What is this?")
    assert talk.cut is not None and "cut after 8 tokens" in talk.cut
    talk.show("image", media["two.jpg"])
    second = ask(talk, "and this?")
    files = [shown("image", media["one.png"]), shown("video", media["clip.mp4"]), shown("image", media["two.jpg"])]
    parts = [{"type": size.kind, "media": number} for number, (size, _) in enumerate(files)]
    messages: list[dict] = [
        {"role": "system", "content": "You see."},
        {"role": "user", "content": [*parts[:2], {"type": "text", "text": "What is this?"}]},
    ]
    one = prompt_of(loaded, messages, files[:2])
    answer = loaded.tokenizer.decode(generate(loaded.model, [one], end=loaded.end, pad=0, most=TOKENS)[0])
    assert first == printable(answer) == plainly(loaded, one)
    messages += [
        {"role": "assistant", "content": answer},
        {"role": "user", "content": [parts[2], {"type": "text", "text": "and this?"}]},
    ]
    assert second == plainly(loaded, prompt_of(loaded, messages, files))
    assert len({first, second}) == 2
    talk.clear()
    alone = [{"role": "system", "content": "You see."}, {"role": "user", "content": "and this?"}]
    assert ask(talk, "and this?") == plainly(loaded, prompt_of(loaded, alone, [])) != second


def test_pixels_reach_the_answer(loaded: Loaded, media: dict[str, Path], tmp_path: Path) -> None:
    def seen(kind: Any, path: Path) -> str:
        talk = talk_of(loaded)
        talk.show(kind, path)
        return ask(talk, "What is this?")

    (tmp_path / "other.png").write_bytes(picture_bytes(50, 80, 9))
    (tmp_path / "longer.mp4").write_bytes(clip_bytes(frames=60))
    answers = [seen("image", media["one.png"]), seen("image", tmp_path / "other.png")]
    answers += [seen("video", media["clip.mp4"]), seen("video", tmp_path / "longer.mp4")]
    assert len(set(answers)) == 4


def give(monkeypatch: pytest.MonkeyPatch, loaded: Loaded, text: str) -> None:
    """Let the model answer `text`, whatever it is asked."""
    ids = loaded.tokenizer.encode(text)
    monkeypatch.setattr(conversation_module, "stream", lambda *_, most, **__: ([token] for token in ids[:most]))


def test_no_character_is_cut(monkeypatch: pytest.MonkeyPatch, loaded: Loaded) -> None:
    text = "\u00e9\u6f22\u5b57 \U0001f600 end"
    assert len(loaded.tokenizer.encode(text)) > len(text), "characters of several tokens"
    give(monkeypatch, loaded, text)
    pieces = list(talk_of(loaded, tokens=100).answer("?"))
    assert "".join(pieces) == text and len(pieces) >= 6
    assert not any("\ufffd" in piece for piece in pieces)
    cut = list(talk_of(loaded, tokens=len(loaded.tokenizer.encode("\u00e9\u6f22")) - 1).answer("?"))
    assert "".join(cut) == "\u00e9\ufffd", "what no token completed is shown at the end"


def test_nothing_steers_the_terminal(monkeypatch: pytest.MonkeyPatch, loaded: Loaded) -> None:
    give(monkeypatch, loaded, "a\x1b[31mb\r\x07\x9b2J\u202ec\u2028\n\td \u200d\u3000\u00a0")
    talk = talk_of(loaded, tokens=100)
    assert ask(talk, "?") == "a\ufffd[31mb\ufffd\ufffd\ufffd2J\ufffdc\ufffd\n\td \u200d\u3000\u00a0"


def test_a_stopped_answer_stays_and_a_failed_turn_does_not(loaded: Loaded, media: dict[str, Path]) -> None:
    talk = talk_of(loaded)
    pieces = talk.answer("What is this?")
    begun = next(pieces) + next(pieces)
    pieces.close()
    talk.show("image", media["one.png"])
    with pytest.raises(ValueError, match="positions and the model has 256"):
        ask(talk, "left " * 300)
    messages = [{"role": "user", "content": "What is this?"}]
    ids = generate(loaded.model, [prompt_of(loaded, messages, [])], end=loaded.end, pad=0, most=TOKENS)[0]
    starts = [loaded.tokenizer.decode(ids[:count]) for count in range(2, TOKENS)]
    stopped = next(text for text in starts if printable(whole_characters(text)) == begun)
    messages += [{"role": "assistant", "content": stopped}, {"role": "user", "content": "and?"}]
    assert ask(talk, "and?") == plainly(loaded, prompt_of(loaded, messages, []))


def test_an_answer_ends_where_positions_end(loaded: Loaded) -> None:
    talk = talk_of(loaded, tokens=512)
    ask(talk, "left " * 100)
    assert talk.cut is not None and "no position is left" in talk.cut


def test_a_clip_needs_a_decoder(monkeypatch: pytest.MonkeyPatch, loaded: Loaded, media: dict[str, Path]) -> None:
    monkeypatch.setattr(conversation_module.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ValueError, match=r"clip\.mp4: no decoder for clips is installed here; pip install av"):
        talk_of(loaded).show("video", media["clip.mp4"])
