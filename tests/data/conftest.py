"""A tiny tokenizer and a small mixed source, made once for the tests of data/."""

import io
import json
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
import tokenizers
from PIL import Image
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from data.config import DataConfig, ImageConfig, SourceConfig, VideoConfig
from data.encoding.chat_template import CHAT_TEMPLATE
from data.encoding.tokenizer import SPECIAL_NAMES, Tokenizer, load_tokenizer
from data.formats.shards import write_shards
from data.index.build import build_index
from data.types import RawSample

WORDS = "the digit moves left right user assistant system You are a helpful assistant. What is this? 0 1 2 3\n\n"
QWEN_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
IMAGE = ImageConfig(min_pixels=28 * 28, max_pixels=56 * 84)
VIDEO = VideoConfig(min_pixels=28 * 28, max_pixels=56 * 56, max_frames=8)


def train_tokenizer(folder: Path) -> Path:
    backend = tokenizers.Tokenizer(models.BPE())
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(QWEN_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    backend.train_from_iterator([WORDS] * 4, trainer)
    special = [tokenizers.AddedToken(name, special=True, normalized=False) for name in SPECIAL_NAMES.values()]
    backend.add_special_tokens(special)
    backend.add_tokens([tokenizers.AddedToken("<tool_call>", special=False, normalized=False)])
    folder.mkdir(parents=True, exist_ok=True)
    backend.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>", "chat_template": CHAT_TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def picture_bytes(height: int, width: int, seed: int = 0, kind: str = "PNG") -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind)
    return stream.getvalue()


def clip_bytes(frames: int = 12, height: int = 48, width: int = 64, rate: int = 8, shift: int = 0) -> bytes:
    """H.264 in mp4; every frame has its own grey level, so that a wrong frame shows. `shift` of them makes another."""
    stream = io.BytesIO()
    with av.open(stream, "w", format="mp4") as container:
        video = container.add_stream("libx264", rate=rate)
        video.width, video.height, video.pix_fmt = width, height, "yuv420p"
        for number in range(frames):
            level = (10 + number * 235 // frames + shift) % 256
            frame = av.VideoFrame.from_ndarray(np.full((height, width, 3), level, dtype=np.uint8), format="rgb24")
            container.mux(video.encode(frame))
        container.mux(video.encode())
    return stream.getvalue()


def make_samples(count: int, clip: bytes) -> list[RawSample]:
    """Text, one picture, several pictures, chat, and a clip, in turn; sizes differ from sample to sample."""
    samples = []
    for n in range(count):
        text = {"type": "text", "text": f" digit {n} moves" + " left" * (n % 7)}
        pictures = {m: ("png", picture_bytes(20 + 7 * (n % 9) + 5 * m, 30 + 11 * (n % 5), n)) for m in range(2)}
        shown = [{"type": "image", "media": m} for m in pictures]
        question = {"type": "text", "text": "What is this?", "prefix": True}
        variants: list[tuple[dict, dict]] = [
            ({"source": "text", "parts": [text]}, {}),
            ({"source": "caption", "parts": [shown[0], question, text]}, {0: pictures[0]}),
            ({"source": "many", "parts": [shown[1], text, shown[0], text]}, pictures),
            (
                {
                    "source": "chat",
                    "messages": [
                        {"role": "user", "content": [shown[0], {"type": "text", "text": "What is this?"}]},
                        {"role": "assistant", "content": f"{n}"},
                    ],
                },
                {0: pictures[0]},
            ),
            ({"source": "clips", "parts": [{"type": "video", "media": 0}, text]}, {0: ("mp4", clip)}),
        ]
        content, media = variants[n % 5]
        samples.append(RawSample(key=f"sample{n:04d}", content=content, media=media))
    return samples


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="session")
def tokenizer(tokenizer_folder: Path) -> Tokenizer:
    return load_tokenizer(tokenizer_folder)


@pytest.fixture(scope="session")
def clip() -> bytes:
    return clip_bytes()


@pytest.fixture
def make_source(tmp_path: Path, tokenizer: Tokenizer, clip: bytes) -> Callable[..., Path]:
    """A folder of fresh shards with its index, for a test to damage."""

    def make(name: str = "mixed", samples: list[RawSample] | None = None, clips: bool = True) -> Path:
        folder = tmp_path / name
        if samples is None:  # a decoder's process costs a second, so tests that need no clip do without
            samples = [sample for sample in make_samples(20, clip) if clips or sample.content["source"] != "clips"]
        write_shards(folder, name, samples, samples_per_shard=6)
        build_index(folder, tokenizer)
        return folder

    return make


@pytest.fixture
def make_config(tokenizer_folder: Path) -> Callable[..., DataConfig]:
    def make(*folders: Path, **changes: object) -> DataConfig:
        values: dict = {
            "tokenizer": str(tokenizer_folder),
            "sources": tuple(SourceConfig(name=folder.name, path=str(folder)) for folder in folders),
            "tokens_per_row": 160,
            "patches_per_row": 400,
            "rows_per_step": 4,
            "window": 16,
            "seed": 3,
            "image": IMAGE,
            "video": VIDEO,
            "workers": 0,
        }
        return DataConfig(**{**values, **changes})

    return make
