"""How many samples a core indexes in a second, from shards in the page cache."""

import io
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import tokenizers
from PIL import Image
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from data.encoding.tokenizer import SPECIAL_NAMES, Tokenizer, load_tokenizer
from data.formats.shards import write_shards
from data.index.build import Index, build_index
from data.types import RawSample
from tests.data.conftest import QWEN_SPLIT

ROOT = Path(__file__).resolve().parents[2]
NUM = 4000
SHARD = 250
PASSES = 16
VOCABULARY = 8000


def _caption(say: Callable[[int], str]) -> dict[str, Any]:
    return {"parts": [{"type": "image", "media": 0}, {"type": "text", "text": say(12) + "."}]}


def _talk(say: Callable[[int], str]) -> dict[str, Any]:
    asked = [{"type": "image", "media": 0}, {"type": "text", "text": say(10) + "?"}]
    return {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": say(35) + "."}]}


KINDS = {"captions of 12 words": _caption, "a question of 10 words and an answer of 35": _talk}


def core_seconds(folder: Path, kind: str) -> tuple[float, float, float]:
    """(CPU seconds, of all processes, for 4,000 samples; text tokens a sample; bytes of a picture).

    A shard counts with the cheapest of many passes over it: a core that its host lends to others as well takes up to
    1.7 times as long for the same, in phases of a tenth of a second and more. What it takes to start the processes
    goes to a shard of one sample, which does not count; writing the index does.
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
        for number in range(NUM + 1)
    ]
    source = folder / "source"
    write_shards(source, "a-start", samples[-1:], 1)
    write_shards(source, "b", samples[:NUM], SHARD)
    passes = []
    for _ in range(PASSES):
        shutil.rmtree(source / "index", ignore_errors=True)
        index, shards, merge = _one_pass(source, tokenizer)
        assert len(index) == len(samples), index.meta["refused"][:3]
        passes.append([*shards[1:], merge])
    tokens = float(index.columns["num_text_tokens"].mean())
    cheapest = np.min(passes, axis=0).sum()
    return float(cheapest) * 4000 / NUM, tokens, float(np.mean([len(data) for data in pictures]))


def _one_pass(source: Path, tokenizer: Tokenizer) -> tuple[Index, list[float], float]:
    """The index; CPU seconds for each of its shards, and for laying their parts together."""
    own, below = [time.process_time()], [0.0]

    def note(*_: int) -> None:  # when the reader has a shard done and does not have the next one
        own.append(time.process_time())
        below.append(_below())

    index = build_index(source, tokenizer, note, readers=1)
    merge = time.process_time() - own[-1]
    return index, (np.diff(own) + np.diff(below)).tolist(), merge


def _below() -> float:
    """CPU seconds of the processes below this one that live: the reader, and the child it has for pictures."""
    threads = [
        thread
        for process in psutil.Process().children(recursive=True)
        for thread in Path(f"/proc/{process.pid}/task").iterdir()
    ]
    # In nanoseconds, where everything else that tells it counts hundredths of a second.
    return sum(int((thread / "schedstat").read_text().split()[0]) for thread in threads) / 1e9


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
