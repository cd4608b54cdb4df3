"""How many samples a core indexes in a second, from shards in the page cache."""

import io
import random
import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from PIL import Image
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from data.encoding.tokenizer import SPECIAL_NAMES, Tokenizer, load_tokenizer
from data.formats.shards import write_shards
from data.index.build import Index, build_index
from data.types import RawSample
from tests.data.conftest import QWEN_SPLIT

ROOT = Path(__file__).resolve().parents[2]
NUM = 8000
VOCABULARY = 8000
TRIES = 2


def _caption(say: Callable[[int], str]) -> dict[str, Any]:
    return {"parts": [{"type": "image", "media": 0}, {"type": "text", "text": say(12) + "."}]}


def _talk(say: Callable[[int], str]) -> dict[str, Any]:
    asked = [{"type": "image", "media": 0}, {"type": "text", "text": say(10) + "?"}]
    return {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": say(35) + "."}]}


KINDS = {"captions of 12 words": _caption, "a question of 10 words and an answer of 35": _talk}


def core_seconds(folder: Path, kind: str) -> tuple[float, float, float]:
    """(CPU seconds, of all processes, for 4,000 samples; text tokens a sample; bytes of a picture).

    Without what it takes to start the processes, which is what a source of one sample takes. The best of a few tries:
    other work on the machine takes cycles but gives none.
    """
    text = "\n".join(path.read_text("utf-8") for path in sorted(ROOT.glob("docs/*.md")))
    tokenizer = load_tokenizer(_tokenizer(folder / "tokenizer", text))
    words = [word for word in text.split() if word.isalpha()]
    chance = random.Random(0)
    pictures = [_jpeg(number) for number in range(64)]
    samples = [
        RawSample(
            key=f"{number:07d}",
            content=KINDS[kind](lambda count: " ".join(chance.choices(words, k=count))),
            media={0: ("jpg", pictures[number % len(pictures)])},
        )
        for number in range(NUM)
    ]
    write_shards(folder / "source", "s", samples, NUM // 4)
    write_shards(folder / "one", "s", samples[:1], 1)
    start, _ = _cheapest(folder / "one", tokenizer)
    whole, index = _cheapest(folder / "source", tokenizer)
    assert len(index) == NUM, index.meta["refused"][:3]
    tokens = float(index.columns["num_text_tokens"].mean())
    return (whole - start) * 4000 / (NUM - 1), tokens, float(np.mean([len(data) for data in pictures]))


def _cheapest(source: Path, tokenizer: Tokenizer) -> tuple[float, Index]:
    spent = []
    for _ in range(TRIES):
        shutil.rmtree(source / "index", ignore_errors=True)
        before = _cpu()
        index = build_index(source, tokenizer, readers=1)
        spent.append(_cpu() - before)
    return min(spent), index


def _cpu() -> float:
    """Of this process and of children that have ended: the reader, and the child it has for pictures."""
    return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


def _jpeg(seed: int) -> bytes:
    """Some 10 KB of soft shapes, 200 to 400 pixels a side."""
    random_pixels = np.random.default_rng(seed)
    width, height = random_pixels.integers(200, 400, 2).tolist()
    shapes = Image.fromarray(random_pixels.integers(0, 256, (8, 8, 3), dtype=np.uint8))
    stream = io.BytesIO()
    shapes.resize((width, height), Image.Resampling.BICUBIC).save(stream, "JPEG", quality=85)
    return stream.getvalue()


def _tokenizer(folder: Path, text: str) -> Path:
    """With Qwen's way of splitting, trained on the documentation: words are tokens, as in a real one."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(tokenizers.Regex(QWEN_SPLIT), behavior="isolated")
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator(text.splitlines(), trainer)
    backend.add_special_tokens([tokenizers.AddedToken(name, special=True) for name in SPECIAL_NAMES.values()])
    folder.mkdir(parents=True)
    backend.save(str(folder / "tokenizer.json"))
    return folder
