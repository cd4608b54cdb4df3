"""A Hugging Face tokenizer folder, with the one thing its own API lacks: text cannot smuggle in control tokens.

Ids are always read from the folder; only the names below are written in code. Only `tokenizers` is imported, because
importing transformers costs seconds in every reading process.
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path

import tokenizers

from data.errors import MismatchError

_SHORT = 256  # longest text worth remembering: role headers, labels and questions recur, documents do not


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenIds:
    """Ids of the special tokens of the Qwen2-VL family."""

    end_of_text: int
    im_start: int
    im_end: int
    object_ref_start: int
    object_ref_end: int
    box_start: int
    box_end: int
    quad_start: int
    quad_end: int
    vision_start: int
    vision_end: int
    image_pad: int
    video_pad: int


SPECIAL_NAMES = {field.name: f"<|{field.name}|>" for field in fields(TokenIds)} | {"end_of_text": "<|endoftext|>"}
GROUNDING_NAMES = tuple(f"<|{name}_{end}|>" for name in ("object_ref", "box", "quad") for end in ("start", "end"))
_GROUNDING = re.compile("(" + "|".join(map(re.escape, GROUNDING_NAMES)) + ")")


class Tokenizer:
    """Text to ids and back. In text only the grounding specials become special tokens."""

    def __init__(self, backend: tokenizers.Tokenizer, digest: str, folder: str | Path = "") -> None:
        vocabulary = backend.get_vocab(with_added_tokens=True)
        missing = [name for name in SPECIAL_NAMES.values() if name not in vocabulary]
        if missing:
            raise MismatchError(
                f"the tokenizer lacks the special tokens {', '.join(missing)}; "
                "use the tokenizer folder of a Qwen2-VL model"
            )
        self.ids = TokenIds(**{key: vocabulary[name] for key, name in SPECIAL_NAMES.items()})
        self.digest = digest
        self.folder = Path(folder)  # from which other processes load it as well
        self._backend = backend
        self.vocab_size = max(vocabulary.values()) + 1
        added = [token.content for token in backend.get_added_tokens_decoder().values()]
        # Qwen2.5-era folders mark <tool_call> and the like as added but not special, and those are matched in text
        # whatever the flag below says; declared special again (same ids), they are plain characters too.
        backend.add_special_tokens(added)
        backend.encode_special_tokens = True
        backend.no_truncation()
        backend.no_padding()
        self._grounding = {name: vocabulary[name] for name in GROUNDING_NAMES}
        self._short = lru_cache(maxsize=8192)(self._encode_plain)

    def encode(self, text: str) -> list[int]:
        """Ids of `text`; of all special-token strings only the grounding ones are recognised."""
        return self.encode_with_starts(text)[0]

    def encode_with_starts(self, text: str) -> tuple[list[int], list[int]]:
        """As `encode`, with the character at which each token starts (to tell a role header from what follows)."""
        ids: list[int] = []
        starts: list[int] = []
        place = 0
        for piece in _GROUNDING.split(text):
            if piece in self._grounding:
                ids.append(self._grounding[piece])
                starts.append(place)
            elif piece:
                found, offsets = self._short(piece) if len(piece) <= _SHORT else self._encode_plain(piece)
                ids.extend(found)
                starts.extend(place + offset for offset in offsets)
            place += len(piece)
        return ids, starts

    def count(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text, as `encode` gives them; many at once take a fraction of the time."""
        # Few texts have a marker at all, and to look for any of them takes as long as to tokenise.
        pieces = [[piece for piece in _GROUNDING.split(text) if piece] if "<|" in text else [text] for text in texts]
        plain = [piece for split in pieces for piece in split if piece not in self._grounding]
        lengths = iter([len(each) for each in self._backend.encode_batch_fast(plain, add_special_tokens=False)])
        return [sum(1 if piece in self._grounding else next(lengths) for piece in split) for split in pieces]

    def _encode_plain(self, text: str) -> tuple[list[int], list[int]]:
        encoding = self._backend.encode(text, add_special_tokens=False)
        return encoding.ids, [start for start, _ in encoding.offsets]

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = False) -> str:
        """Text of `ids`; special tokens are written out unless told to skip them."""
        return self._backend.decode(list(ids), skip_special_tokens=skip_special_tokens)

    def name(self, token: int) -> str:
        """The token as the vocabulary spells it, byte-level where the tokenizer is; ValueError for no such id."""
        found = self._backend.id_to_token(token)
        if found is None:
            raise ValueError(f"the tokenizer has no token {token}, its largest is {self.vocab_size - 1}")
        return found


def load_tokenizer(folder: str | Path) -> Tokenizer:
    """Read `folder/tokenizer.json`. Raises MismatchError if it is absent, damaged or lacks a special token."""
    path = Path(folder) / "tokenizer.json"
    if not path.is_file():
        raise MismatchError(f"no tokenizer.json in {folder}; point data.tokenizer at a Hugging Face tokenizer folder")
    text = path.read_bytes()
    try:
        backend = tokenizers.Tokenizer.from_str(text.decode("utf-8"))
    except Exception as error:  # the library raises no narrower one
        raise MismatchError(f"{path} cannot be read as a tokenizer: {error}") from error
    return Tokenizer(backend, hashlib.blake2b(text, digest_size=16).hexdigest(), folder)


def check_tokenizer(tokenizer: Tokenizer, vocab_size: int, model_ids: Mapping[str, int] | None = None) -> None:
    """Refuse a tokenizer that the model cannot embed, before anything is started.

    `model_ids` are ids the model's own config declares, by TokenIds field (for example `image_pad`).
    Raises MismatchError with every difference.
    """
    wrong = []
    if tokenizer.vocab_size > vocab_size:
        wrong.append(f"largest token id is {tokenizer.vocab_size - 1} but the model has {vocab_size} embeddings")
    for name, expected in (model_ids or {}).items():
        found = getattr(tokenizer.ids, name)
        if found != expected:
            wrong.append(f"{SPECIAL_NAMES[name]} is {found} in the tokenizer and {expected} in the model config")
    if wrong:
        raise MismatchError("tokenizer and model do not belong together: " + "; ".join(wrong))
