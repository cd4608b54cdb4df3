"""The sample data: same bytes for the same seed, and nothing held out is ever shown in training."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("sklearn")
pytest.importorskip("skimage")
pytest.importorskip("matplotlib")

from data.samples import digits, scenes, words
from data.samples.__main__ import make
from data.samples.clips import DIRECTIONS, NUM_FRAMES, move_card
from data.samples.recipe import TRAIN_SOURCES
from data.samples.tasks import TASKS

Stored = tuple[dict[str, Any], list[tuple[str, bytes]]]
FRACTION = 0.04


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("samples")
    make(out, seed=3, fraction=FRACTION)
    return out


def _read(folder: Path) -> dict[str, list[Stored]]:
    """By source: what the shards hold, read with nothing but tarfile."""
    found: dict[str, list[Stored]] = {}
    for path in sorted(folder.rglob("*.tar")):
        samples = found.setdefault(path.parent.name, [])
        with tarfile.open(path) as tar:
            for member in tar:
                stream = tar.extractfile(member)
                assert stream is not None
                content = stream.read()
                key, _, suffix = member.name.partition(".")
                if suffix == "json":
                    samples.append((json.loads(content) | {"key": key}, []))
                else:
                    assert samples[-1][0]["key"] == key, "a sample's members must be adjacent, its JSON first"
                    samples[-1][1].append((suffix, content))
    return found


@pytest.fixture(scope="module")
def stored(folder: Path) -> dict[str, dict[str, list[Stored]]]:
    return {split: _read(folder / split) for split in ("train", "heldout")}


def _origins(sources: dict[str, list[Stored]], name: str) -> list[Any]:
    return [one for samples in sources.values() for content, _ in samples for one in content["origin"].get(name, [])]


def test_every_source_and_task_is_written(stored: dict, folder: Path) -> None:
    assert set(stored["train"]) == set(TRAIN_SOURCES)
    assert set(stored["heldout"]) == {*TASKS, "document_captions", "document_text"}
    for task in TASKS:
        assert len(stored["heldout"][task]) >= 100
    for task, samples in stored["heldout"].items():
        for content, media in samples:
            shown = [part["media"] for part in _parts(content) if part["type"] != "text"]
            assert shown == list(range(len(media)))
            if task in TASKS:
                assert content["eval"]["task"] == task
                assert content["messages"][-1] == {"role": "assistant", "content": content["eval"]["answer"]}
    assert json.loads((folder / "DONE.json").read_text())["samples"]["heldout/digits"] >= 100


def _parts(content: dict[str, Any]) -> list[dict[str, Any]]:
    if "parts" in content:
        return content["parts"]
    contents = [message["content"] for message in content["messages"]]
    return [part for one in contents if not isinstance(one, str) for part in one]


def test_same_seed_same_bytes(folder: Path, tmp_path: Path) -> None:
    make(tmp_path, seed=3, fraction=FRACTION)
    for path in sorted(folder.rglob("*.*")):
        if path.name != "DONE.json":
            assert path.read_bytes() == (tmp_path / path.relative_to(folder)).read_bytes(), path


def test_no_stored_file_is_shared(stored: dict) -> None:
    digests = {
        split: {
            hashlib.blake2b(content).digest() for samples in sources.values() for _, m in samples for _, content in m
        }
        for split, sources in stored.items()
    }
    assert digests["train"] and not digests["train"] & digests["heldout"]


def test_scans_strings_and_sizes_are_disjoint(stored: dict) -> None:
    for name in ("scans", "strings", "sizes"):
        train, heldout = set(_origins(stored["train"], name)), set(_origins(stored["heldout"], name))
        assert train and heldout and not train & heldout, name
    held = set(_origins(stored["heldout"], "strings"))
    for samples in stored["train"].values():
        for content, _ in samples:
            spoken = json.dumps(content.get("parts") or content["messages"])
            assert not held & set("".join(c if c.isalpha() else " " for c in spoken).split())


def test_regions_of_photographs_do_not_touch(stored: dict) -> None:
    marked = {name: {split: np.zeros((1600, 1600), bool) for split in stored} for name in scenes.SCENES}
    for split, sources in stored.items():
        for name, left, top, right, bottom in _origins(sources, "regions"):
            marked[name][split][top:bottom, left:right] = True
    for name, masks in marked.items():
        assert masks["train"].any() and masks["heldout"].any(), name
        assert not (masks["train"] & masks["heldout"]).any(), name


@cache
def _scan_vectors() -> np.ndarray:
    pixels = digits.scan_images().reshape(-1, 64).astype(np.float64)
    pixels -= pixels.mean(axis=1, keepdims=True)
    return pixels / np.linalg.norm(pixels, axis=1, keepdims=True)


def _canvas(content: bytes) -> np.ndarray:
    image = Image.open(io.BytesIO(content)).convert("RGB")
    size = [max(1, round(side / digits.CARD)) * digits.CARD for side in image.size]
    return np.asarray(image.resize((size[0], size[1]), Image.Resampling.BICUBIC))


def _best_scan(canvas: np.ndarray) -> int:
    """The scan that looks most like any cell of the picture, whatever the sample says about itself."""
    best, found = -1.0, -1
    size = digits.CARD
    for row, column in product(range(canvas.shape[0] // size), range(canvas.shape[1] // size)):
        cell = canvas[row * size : (row + 1) * size, column * size : (column + 1) * size]
        ink = 255 - np.asarray(Image.fromarray(cell[2:-2, 2:-2]).convert("L").resize((8, 8), Image.Resampling.BOX))
        vector = ink.astype(np.float64).ravel() - ink.mean()
        likeness = _scan_vectors() @ (vector / (np.linalg.norm(vector) + 1e-9))
        if likeness.max() > best:
            best, found = float(likeness.max()), int(likeness.argmax())
    return found


def test_origins_tell_the_truth_about_pixels(stored: dict) -> None:
    held_scans = {scan for one in digits.scan_ids("heldout") for scan in one}
    for split, sources in stored.items():
        samples = sources["digits"][:40]
        exact = heldout = close = 0
        for content, media in samples:
            canvas = _canvas(media[0][1])
            scan = _best_scan(canvas)
            exact += scan == content["origin"]["scans"][0]
            heldout += scan in held_scans
            name, *box = content["origin"]["regions"][0]
            size = (canvas.shape[1], canvas.shape[0])
            crop = np.asarray(scenes.photo(name).crop(tuple(box)).resize(size, Image.Resampling.BILINEAR))
            # Half of the smallest canvas is card, so look at the lower third of the differences.
            close += np.quantile(np.abs(canvas.astype(int) - crop.astype(int)), 0.33) < 24
        # A card is turned, moved and compressed: a few scans look more like another one.
        assert exact >= 0.6 * len(samples)
        assert (heldout >= 0.6 * len(samples)) if split == "heldout" else (heldout <= 0.15 * len(samples))
        assert close >= 0.95 * len(samples)


def test_one_frame_says_nothing_about_direction() -> None:
    card = np.full((28, 28, 3), 255, np.uint8)
    blank = np.zeros((84, 112, 3), np.uint8)
    seen = {}
    for direction in DIRECTIONS:
        moved = [move_card(blank, card, cell, direction) for cell in product(range(3), range(4))]
        # The whole set of equally likely frames, for each moment.
        seen[direction] = [sorted(frames[moment].tobytes() for frames in moved) for moment in range(0, NUM_FRAMES, 3)]
    assert all(seen[direction] == seen["up left"] for direction in DIRECTIONS)
    assert len({move_card(blank, card, (1, 1), direction).tobytes() for direction in DIRECTIONS}) == len(DIRECTIONS)


def test_grounding_boxes_lie_on_the_cards(stored: dict) -> None:
    held = [scan for one in digits.scan_ids("heldout") for scan in one]
    hits = 0
    samples = stored["heldout"]["grounding"][:30]
    for content, media in samples:
        answer = content["eval"]["answer"]
        x1, y1, x2, y2 = (
            int(n) for n in answer[len("<|box_start|>(") : -len(")<|box_end|>")].replace("),(", ",").split(",")
        )
        assert 0 <= x1 < x2 < 1000 and 0 <= y1 < y2 < 1000
        canvas = _canvas(media[0][1])
        height, width, _ = canvas.shape
        rim_x, rim_y = (x2 - x1) / 12, (y2 - y1) / 12  # the box leaves the card's blank rim out, 2 of 28 pixels
        rows = slice(round((y1 - rim_y) * height / 1000), round((y2 + rim_y) * height / 1000))
        card = canvas[rows, round((x1 - rim_x) * width / 1000) : round((x2 + rim_x) * width / 1000)]
        scan = _best_scan(np.asarray(Image.fromarray(card).resize((28, 28))))
        hits += scan == content["origin"]["scans"][0] and scan in held
    assert hits >= 0.6 * len(samples)


def test_words_are_split_by_string_and_size() -> None:
    assert not set(words.words("train")) & set(words.words("heldout"))
    assert len(words.words("heldout")) >= 100
    assert not set(words.SIZES["train"]) & set(words.SIZES["heldout"])


def test_tokenizer_is_a_hugging_face_folder(folder: Path) -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "tokenizer")
    text = "a 7 on grass\nZQ <|box_start|>(250,0),(500,999)<|box_end|> \u00e9"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids) == text
    assert tokenizer.tokenize("NORTH") == list("NORTH") and tokenizer.tokenize("250") == ["2", "5", "0"]
    chat = [{"role": "user", "content": [{"type": "image"}, {"type": "video"}, {"type": "text", "text": "Sum?"}]}]
    shown = "<|vision_start|><|image_pad|><|vision_end|><|vision_start|><|video_pad|><|vision_end|>Sum?<|im_end|>\n"
    assert tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True) == (
        f"<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n{shown}<|im_start|>assistant\n"
    )
