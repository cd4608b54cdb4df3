"""A conversation with a loaded model: turns and media in, text out as it comes."""

import importlib.util
import os
import re
import unicodedata
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data.config import ImageConfig, VideoConfig
from data.encoding.encode import encode_prompt
from data.errors import SampleError
from data.index.measure import measure
from data.loading.media import PatchReader
from data.types import Float32, MediaKind, MediaSize, RawSample
from data.visual.decode import ClipDecoder
from launch.answering.generate import collate, sampled, stream
from launch.answering.loaded import Loaded
from launch.answering.questions import Prompt

UNPRINTED = "\N{REPLACEMENT CHARACTER}"
# Control, format, surrogate, line and paragraph separator: what can move a cursor, hide or turn round text.
_UNPRINTABLE = {"Cc", "Cf", "Cs", "Zl", "Zp"}
_UNDECODED = re.compile("[\\ud800-\\udfff]")
_HARMLESS = "\n\t\N{ZERO WIDTH NON-JOINER}\N{ZERO WIDTH JOINER}"  # the joiners spell Persian, Hindi and emoji


@dataclass(frozen=True, kw_only=True, slots=True)
class Media:
    """A picture or clip as the model sees it. P patches, D floats of a patch."""

    kind: MediaKind
    size: MediaSize
    patches: Float32  # (P, D)


class Conversation:
    """Turns so far, and the media that will go with the next one.

    Each answer encodes the whole conversation anew and runs all of it through the model, pictures included: a turn
    costs what asking everything at once would, so a long conversation costs the square of its length. No cache outlives
    a turn, because the ids that a model wrote need not be those that its text is encoded to, as it was in training.

    Args:
        system: the system message; None is Qwen2-VL's own.
        tokens: the most that an answer may have.
        temperature: 0 takes the likeliest token every time, above it draws differ from one process to the next.
    """

    def __init__(
        self, loaded: Loaded, *, system: str | None = None, tokens: int = 512, temperature: float = 0.0
    ) -> None:
        self.loaded = loaded
        self.cut: str | None = None
        """Why the last answer ended before the model ended it; None if it did not."""
        self._start = [] if system is None else [{"role": "system", "content": _whole_text(system)}]
        self._tokens = tokens
        generator = torch.Generator(loaded.model.device)
        generator.seed()
        self._choose = sampled(temperature, generator)
        self.clear()

    def clear(self) -> None:
        """Forget every turn, and media that were not sent yet. The system message stays."""
        self._messages: list[dict[str, Any]] = list(self._start)
        self._media: list[Media] = []
        self._next: list[Media] = []

    def show(self, kind: MediaKind, path: str | Path) -> None:
        """Add a picture or clip to the next turn. Raises ValueError naming the file."""
        if self.loaded.config.vision is None:
            raise ValueError(f"{path}: this model has no vision tower and can be shown nothing; ask it in words")
        self._next.append(read_media(kind, path, self.loaded.image, self.loaded.video))

    def answer(self, text: str) -> Generator[str, None, None]:
        """Ask, and give out the answer piece by piece, safe to print and never half a character.

        Close the iterator to stop early: what was said until then stays in the conversation. A turn that fails, or is
        stopped before its first token, is forgotten with its media.

        Raises:
            ValueError: the conversation has no room in the model's positions or in the device's memory.
        """
        shown, self._next = self._next, []
        media = self._media + shown
        parts = [{"type": one.kind, "media": len(self._media) + number} for number, one in enumerate(shown)]
        messages = [*self._messages, {"role": "user", "content": [*parts, {"type": "text", "text": _whole_text(text)}]}]
        prompt = self._prompt(messages, media)
        most = self._room(prompt)
        ids: list[int] = []
        ended, said = False, ""
        try:
            for token in self._stream(prompt, most):
                ids.append(token)
                piece = whole_characters(self.loaded.tokenizer.decode(ids))[len(said) :]
                if piece:
                    said += piece
                    yield printable(piece)
            ended = True
        finally:
            if ids or ended:
                self._messages = [*messages, {"role": "assistant", "content": self.loaded.tokenizer.decode(ids)}]
                self._media = media
        if rest := self.loaded.tokenizer.decode(ids)[len(said) :]:
            yield printable(rest)
        if len(ids) == most:
            which = "--tokens allows more" if most == self._tokens else "no position is left; /clear starts anew"
            self.cut = f"cut after {most} tokens; {which}"

    def _prompt(self, messages: Sequence[dict[str, Any]], media: Sequence[Media]) -> Prompt:
        sample = {"messages": [*messages, {"role": "assistant", "content": ""}]}
        sizes = [one.size for one in media]
        encoded = encode_prompt(sample, sizes, self.loaded.tokenizer, self.loaded.image, self.loaded.video)
        empty = np.empty((0, self.loaded.image.patch_dim), dtype=np.float32)
        return Prompt(
            encoded=encoded,
            kinds=tuple(one.kind for one in media),
            patches=np.concatenate([empty, *(one.patches for one in media)]),
        )

    def _room(self, prompt: Prompt) -> int:
        """Tokens that the answer may have."""
        needed, given = int(prompt.encoded.positions.max()) + 1, self.loaded.config.language.max_positions
        if needed >= given:
            raise ValueError(
                f"the conversation takes {needed} positions and the model has {given}, one at least for the answer; "
                "ask for less, or show fewer or smaller pictures (/clear starts anew)"
            )
        return min(self._tokens, given - needed)

    def _stream(self, prompt: Prompt, most: int) -> Iterator[int]:
        self.cut = None
        loaded, device = self.loaded, str(self.loaded.model.device)
        batch = collate([prompt], loaded.tokenizer.ids.end_of_text, device)
        try:
            for (token,) in stream(loaded.model, batch, end=loaded.end, most=most, choose=self._choose):
                assert token is not None  # of one prompt
                yield token
        except torch.OutOfMemoryError as error:
            raise ValueError(
                f"{device} has too little memory for a conversation of {len(prompt.encoded.tokens)} tokens; show fewer "
                "or smaller pictures, /clear, or start with --device cpu"
            ) from error


def _whole_text(text: str) -> str:
    """`text` with what came of bytes that are no UTF-8 (arguments, pipes) replaced; no tokenizer takes those."""
    return _UNDECODED.sub(UNPRINTED, text)


def whole_characters(text: str) -> str:
    """`text` without an end that later tokens may still complete.

    Bytes that begin a character and do not finish it are decoded to one replacement character at the very end.
    """
    return text[:-1] if text.endswith(UNPRINTED) else text


def printable(text: str) -> str:
    """`text` with everything that could steer a terminal replaced; newlines and tabs stay."""
    return "".join(
        UNPRINTED if unicodedata.category(one) in _UNPRINTABLE and one not in _HARMLESS else one for one in text
    )


def check_files(paths: Sequence[Path]) -> None:
    """Refuse a name that is no file, before a model is loaded for it."""
    for path in paths:
        if not path.is_file():
            raise ValueError(f"{path}: no such file")


def read_media(kind: MediaKind, path: str | Path, image: ImageConfig, video: VideoConfig) -> Media:
    """Measure and decode one file with the pixels of training. Raises ValueError naming the file."""
    path = Path(path)
    check_files([path])
    if kind == "video" and not any(importlib.util.find_spec(name) for name in ("decord", "av")):
        raise ValueError(f"{path}: no decoder for clips is installed here; pip install av")
    part = {"type": kind, "media": 0}
    raw = RawSample(key=path.name, content={"parts": [part]}, media={0: (path.suffix.lower(), path.read_bytes())})
    # The decoder's process ends here, not with the program: Ctrl-C in a terminal reaches children as well.
    reader, decoder = PatchReader(image, video), ClipDecoder(video.timeout_seconds)
    try:
        with _quiet_children():
            sizes = measure(raw, decoder)
            return Media(kind=kind, size=sizes[0], patches=reader.read(raw, [0], sizes))
    except SampleError as error:  # which may name the member of a stored sample; here that is the file
        raise ValueError(f"{path}: {str(error).removeprefix(f'sample {raw.key}, member 0: ')}") from error
    except RuntimeError as error:
        raise ValueError(f"{path}: {error}; a clip needs decord or av") from error
    finally:
        decoder.close()
        reader.close()


@contextmanager
def _quiet_children() -> Iterator[None]:
    """Keep what decoders print from the terminal: decord quotes the bytes of a file that it cannot open."""
    kept = os.dup(2)
    try:
        with open(os.devnull, "wb") as nothing:
            os.dup2(nothing.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
