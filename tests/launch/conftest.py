"""Tiny random models with their checkpoints and folders, and media to show them, made once for the tests of chat."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from data.encoding.encode import encode_prompt
from data.loading.media import PatchReader
from data.types import MediaSize, RawSample
from launch.answering.conversation import Conversation, printable
from launch.answering.generate import collate
from launch.answering.loaded import Loaded, load
from launch.answering.questions import Prompt
from launch.checkpoints.export import export
from model.canonical import Box
from model.hf_weights import canonical_shape, hf_pieces
from tests.data.conftest import IMAGE, VIDEO, clip_bytes, picture_bytes, train_tokenizer
from tests.harness.commits import save_commit
from train.config import RunConfig
from train.resolve import compose, to_yaml

TOKENS = 8


def random_weights(run: RunConfig) -> dict[str, Tensor]:
    """Large ones, so that answers differ from prompt to prompt."""
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.randn(canonical_shape(pieces), generator=generator) * 0.3 + (1.0 if "norm.weight" in name else 0.0)
        for name, pieces in hf_pieces(run.model).items()
    }


def save(run: RunConfig) -> RunConfig:
    weights = random_weights(run)
    boxes = {
        name: Box(name=name, global_shape=tuple(value.shape), offset=(0,) * value.dim(), shape=tuple(value.shape))
        for name, value in weights.items()
    }
    save_commit(run.run_dir, 3, weights, boxes, None, {"cursor": {}}, to_yaml(run), keep=2)
    return run


@pytest.fixture
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def seeing(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """A checkpoint of a model with vision, tied embeddings and more ids than its tokenizer knows."""
    folder = tmp_path_factory.mktemp("seeing")
    composed = compose("quickstart_stage1")
    tokenizer = str(train_tokenizer(folder / "tokenizer"))
    data = replace(composed.data, tokenizer=tokenizer, image=IMAGE, video=VIDEO)
    vision = composed.model.vision
    assert vision is not None
    language = replace(composed.model.language, num_layers=2, max_positions=256, vocab_size=440)
    model = replace(composed.model, vision=replace(vision, depth=2), language=language)
    return save(replace(composed, run_dir=str(folder / "run"), data=data, model=model))


@pytest.fixture(scope="session")
def words(seeing: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """A checkpoint of a language model alone, with a head of its own."""
    language = replace(seeing.model.language, tie_embeddings=False)
    composed = compose("quickstart_language")
    model = replace(composed.model, language=language)
    return save(replace(composed, run_dir=str(tmp_path_factory.mktemp("words")), data=seeing.data, model=model))


@pytest.fixture(scope="session")
def loaded(seeing: RunConfig) -> Loaded:
    return load(seeing.run_dir, "cpu")


@pytest.fixture(scope="session")
def exported(seeing: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(seeing.run_dir, tmp_path_factory.mktemp("exported") / "hf")


@pytest.fixture(scope="session")
def media(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    files = tmp_path_factory.mktemp("media")
    (files / "one.png").write_bytes(picture_bytes(50, 80, 1))
    (files / "two.jpg").write_bytes(picture_bytes(90, 40, 2, "JPEG"))
    (files / "clip.mp4").write_bytes(clip_bytes())
    (files / "broken.png").write_bytes(picture_bytes(50, 80, 1)[:200])
    (files / "broken.mp4").write_bytes(b"no clip at all" * 50)
    return {path.name: path for path in files.iterdir()}


def ask(conversation: Conversation, text: str) -> str:
    return "".join(conversation.answer(text))


def talk_of(loaded: Loaded, **options: Any) -> Conversation:
    return Conversation(loaded, **({"tokens": TOKENS} | options))


def prompt_of(loaded: Loaded, messages: list[dict], media: list[tuple[MediaSize, bytes]]) -> Prompt:
    sizes = [size for size, _ in media]
    raw = RawSample(key="", content={}, media={number: ("", data) for number, (_, data) in enumerate(media)})
    sample = {"messages": [*messages, {"role": "assistant", "content": "x"}]}
    encoded = encode_prompt(sample, sizes, loaded.tokenizer, loaded.image, loaded.video)
    reader = PatchReader(loaded.image, loaded.video)
    patches = reader.read(raw, encoded.media, sizes)
    reader.close()
    return Prompt(encoded=encoded, kinds=tuple(size.kind for size in sizes), patches=patches)


@torch.inference_mode()
def plainly(loaded: Loaded, prompt: Prompt, steps: int = TOKENS) -> str:
    """The whole sequence anew for every token, and no cache."""
    batch = collate([prompt], 0)
    tokens, positions = batch.tokens, batch.positions
    found: list[int] = []
    for _ in range(steps):
        ids = positions if loaded.config.vision is not None else positions[0]
        found.append(int(loaded.model(input_ids=tokens, position_ids=ids, **batch.media).logits[0, -1].argmax()))
        if found[-1] in loaded.end:
            found.pop()
            break
        tokens = torch.cat([tokens, torch.tensor([[found[-1]]])], dim=1)
        positions = torch.cat([positions, (positions.max() + 1).expand(3, 1, 1)], dim=2)
    return printable(loaded.tokenizer.decode(found))


def shown(kind: str, path: Path) -> tuple[MediaSize, bytes]:
    sizes = {
        "one.png": MediaSize(kind="image", height=50, width=80),
        "two.jpg": MediaSize(kind="image", height=90, width=40),
        "clip.mp4": MediaSize(kind="video", height=48, width=64, frames=12, fps=8.0),
    }
    assert sizes[path.name].kind == kind
    return sizes[path.name], path.read_bytes()
