"""Measurements of pictures, positions and clips, by running what the loader runs."""

import io
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from PIL import Image, ImageOps

from data.config import DataConfig, ImageConfig, SourceConfig, VideoConfig
from data.encoding import encode
from data.encoding.tokenizer import load_tokenizer
from data.formats.shards import write_shards
from data.index.build import build_index
from data.loading.media import PatchReader
from data.loading.rows import build_reader
from data.plan.lengths import sample_lengths
from data.plan.plan import RowPlan
from data.types import MediaSize, RawSample
from data.visual.pictures import decode_image, image_size
from data.visual.video import choose_frames
from tests.data.conftest import IMAGE, VIDEO, clip_bytes, picture_bytes, train_tokenizer
from tests.prove.model_data_golden import GOLDEN_CLIPS, GOLDEN_SIZES
from tests.prove.model_data_pictures import exif, gallery, tiff

Piece = tuple[int, int, int, int]
"""Words, then a picture or clip of (time, height, width) visual tokens."""
KINDS = {"RGB": "PNG", "L": "JPEG", "RGBA": "WEBP", "P": "PNG", "LA": "PNG", "1": "PNG", "CMYK": "JPEG"}
"""File formats by mode; RGBA as WebP without loss."""


def picture_differences(count: int) -> tuple[float, int]:
    """(largest difference of a patch's float, grids that differ) from transformers' image processor on random files."""
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    random = np.random.default_rng(0)
    sizes = [(1, 1), (10, 2000), (1500, 9), (29, 700), (3, 400), (1080, 1920), (700, 2200)]
    sizes += [tuple(random.integers(5, 500, 2).tolist()) for _ in range(count - len(sizes))]
    largest, grids = 0.0, 0
    for number, (height, width) in enumerate(sizes):
        low, high = ((56 * 56, 28 * 28 * 1280), (56 * 56, 28 * 28 * 40))[number % 2]
        config = ImageConfig(min_pixels=low, max_pixels=high)
        mode, kind = list(KINDS.items())[number % len(KINDS)]
        data = _random_file(random, height, width, mode, kind, orientation=number % 8 + 1)
        # transformers' load_image turns pictures before its processor sees them.
        seen = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
        theirs = Qwen2VLImageProcessorPil(min_pixels=low, max_pixels=high)(seen, return_tensors="np")
        shown = MediaSize(kind="image", height=image_size(data)[0], width=image_size(data)[1])
        ours = PatchReader(config, VideoConfig()).read(_sample(data), (0,), [shown])
        same = encode.media_grid(shown, config, VideoConfig()).patches == tuple(theirs["image_grid_thw"][0])
        grids += not same
        largest = max(largest, float(np.abs(ours - theirs["pixel_values"]).max()) if same else 0.0)
    return largest, grids


def _random_file(random: np.random.Generator, height: int, width: int, mode: str, kind: str, orientation: int) -> bytes:
    pixels = random.integers(0, 256, (height, width, 4), dtype=np.uint8)
    picture = Image.fromarray(pixels).convert("RGB" if mode == "CMYK" else mode).convert(mode)
    stream = io.BytesIO()
    picture.save(stream, kind, exif=b"Exif\0\0" + exif(orientation), lossless=True)
    return stream.getvalue()


def _sample(data: bytes, kind: str = "png") -> RawSample:
    return RawSample(key="sample", content={}, media={0: (kind, data)})


def wrong_golden_sizes() -> tuple[int, int]:
    """(wrong, all) golden vectors of pictures."""
    wrong = 0
    for (height, width), (low, high), resized, patches, tokens in GOLDEN_SIZES:
        size = MediaSize(kind="image", height=height, width=width)
        grid = encode.media_grid(size, ImageConfig(min_pixels=low, max_pixels=high), VideoConfig())
        wrong += ((grid.height, grid.width), grid.num_patches, grid.num_tokens) != (resized, patches, tokens)
    return wrong, len(GOLDEN_SIZES)


def wrong_random_sizes(count: int) -> tuple[int, int]:
    """(wrong, all) random sizes and limits resized otherwise than by transformers; both refuse an aspect above 200."""
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

    random = np.random.default_rng(1)
    wrong = 0
    for _ in range(count):
        height, width = np.exp(random.uniform(0, np.log(9000), 2)).astype(int).tolist()
        low = int(np.exp(random.uniform(np.log(784), np.log(10**6))))
        config = ImageConfig(min_pixels=low, max_pixels=low + int(np.exp(random.uniform(0, np.log(10**7)))))
        try:
            theirs: tuple[int, int] | None = smart_resize(height, width, 28, config.min_pixels, config.max_pixels)
        except ValueError:
            theirs = None
        try:
            grid = encode.media_grid(MediaSize(kind="image", height=height, width=width), config, VideoConfig())
            ours: tuple[int, int] | None = (grid.height, grid.width)
        except ValueError:
            ours = None
        wrong += ours != theirs
    return wrong, count


def wrong_colours() -> tuple[int, int]:
    """(wrong, all) picture files whose pixels or size are not what a person sees, or that do not open."""
    wrong = []
    shown = gallery()
    for picture in shown:
        try:
            found = np.asarray(decode_image(picture.data)).astype(int)
            right = found.shape == picture.pixels.shape and image_size(picture.data) == found.shape[:2]
            right = right and np.abs(found - picture.pixels).max() <= picture.tolerance
        except ValueError:
            right = False
        wrong += [] if right else [picture.name]
    return len(wrong), len(shown)


def unnamed_errors() -> tuple[int, int]:
    """(wrong, all) flawed pictures that are not reported with their shard, key and member, or a whole one that is."""
    whole = ("png", picture_bytes(30, 30))
    # The first three are found by their headers when indexed, the last only when decoded.
    flawed = {
        "long": picture_bytes(2, 401),
        "floats": tiff(np.zeros((9, 9, 1)), "<", form=3, bits=32),
        "noise": b"not a picture",
        "cut": whole[1][:200],
    }
    parts = {"parts": [{"type": "image", "media": 0}, {"type": "image", "media": 7}, {"type": "text", "text": " left"}]}
    samples = [RawSample(key=key, content=parts, media={0: whole, 7: ("png", bad)}) for key, bad in flawed.items()]
    samples.append(RawSample(key="good", content=parts, media={0: whole, 7: whole}))
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = load_tokenizer(train_tokenizer(Path(folder) / "tokenizer"))
        write_shards(Path(folder) / "some", "some", samples, samples_per_shard=9)
        index = build_index(Path(folder) / "some", tokenizer)
        tokens, patches = sample_lengths(index, IMAGE, VIDEO)
        row = RowPlan(samples=((0, 0), (0, 1)), num_tokens=int(tokens.sum()), num_patches=int(patches.sum()), cost=0)
        sources = (SourceConfig(name="some", path=str(Path(folder) / "some")),)
        numbers = {"tokens_per_row": 999, "patches_per_row": 999, "rows_per_step": 1, "window": 2, "seed": 0}
        config = DataConfig(tokenizer=str(Path(folder) / "tokenizer"), sources=sources, image=IMAGE, **numbers)  # type: ignore[arg-type]
        reader = build_reader(config, tokenizer, [index])
        _, records = reader.read(row)
        reader.close()
    told = [*index.meta["refused"], *records]
    named = {record["key"] for record in told if "some-000000.tar" in json.dumps(record) and _names(record)}
    return len(flawed.keys() ^ named), len(flawed)


def _names(record: dict) -> bool:
    return f"sample {record['key']}, member 7: " in record["reason"]


def lay_out(pieces: Sequence[Piece]) -> tuple[int, list[tuple[int, tuple[int, int, int]]]]:
    """(number of tokens, spans as `mrope_positions` wants them) of pieces and three words more."""
    count, spans = 0, []
    for words, *grid in pieces:
        spans.append((count + words, (grid[0], grid[1], grid[2])))
        count += words + int(np.prod(grid))
    return count + 3, spans


def transformers_positions(pieces: Sequence[Piece]) -> np.ndarray:
    """(3, T) by transformers' `get_rope_index`, of the same tokens; what lasts one time step is a picture."""
    import torch
    from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VLModel

    count, spans = lay_out(pieces)
    kinds = torch.zeros((1, count), dtype=torch.int)
    grids: dict[int, list[tuple[int, int, int]]] = {1: [], 2: []}
    for start, (time, height, width) in spans:
        kind = 1 if time == 1 else 2
        kinds[0, start : start + time * height * width] = kind
        grids[kind].append((time, 2 * height, 2 * width))
    # It reads nothing of the model but the merge size, so no model need be built.
    model = SimpleNamespace(config=SimpleNamespace(vision_config=SimpleNamespace(spatial_merge_size=2)))
    model.get_vision_position_ids = lambda *args, **more: Qwen2VLModel.get_vision_position_ids(model, *args, **more)
    pictures, clips = (torch.tensor(grids[kind]).reshape(-1, 3) for kind in (1, 2))
    tokens = torch.zeros((1, count), dtype=torch.long)
    return Qwen2VLModel.get_rope_index(model, tokens, kinds, pictures, clips)[0][:, 0].numpy()


def _random_pieces(random: np.random.Generator) -> list[Piece]:
    return [tuple(random.integers((1, 1, 1, 1), (6, 9, 7, 7)).tolist()) for _ in range(random.integers(1, 5))]


def positions_off_transformers(count: int) -> tuple[int, int]:
    """(wrong, all) random samples without a clip that outlasts its grid, with other ids than transformers gives."""
    random = np.random.default_rng(2)
    wrong = 0
    for _ in range(count):
        pieces = [(n, min(t, max(h, w)), h, w) for n, t, h, w in _random_pieces(random)]
        wrong += not np.array_equal(encode.mrope_positions(*lay_out(pieces)), transformers_positions(pieces))
    return wrong, count


def positions_off_rule(count: int) -> tuple[int, int]:
    """(wrong, all) clips that outlast their grids after which text does not go on at the largest id plus 1, or after
    which transformers does not go on by height and width alone, as we say it does.
    """
    random = np.random.default_rng(3)
    wrong = 0
    for _ in range(count):
        words, height, width = random.integers(1, 6, 3).tolist()
        time = max(height, width) + int(random.integers(1, 9))
        piece = [(words, time, height, width)]
        ours = encode.mrope_positions(*lay_out(piece))[:, -3:].tolist()
        theirs = transformers_positions(piece)[:, -3:].tolist()
        wrong += ours != [[words + time + n for n in range(3)]] * 3
        wrong += theirs != [[words + max(height, width) + n for n in range(3)]] * 3
    return wrong, count


def golden_positions() -> tuple[int, int]:
    """(wrong, all) tokens of a clip of 3 x 2 x 2 and five words with other ids than the example has."""
    words = [3, 4, 5, 6, 7]
    expected = np.array([[0] * 4 + [1] * 4 + [2] * 4 + words, [0, 0, 1, 1] * 3 + words, [0, 1, 0, 1] * 3 + words])
    found = encode.mrope_positions(17, [(0, (3, 2, 2))])
    return int((found != expected).any(axis=0).sum()), 17


def wrong_golden_clips() -> tuple[int, int]:
    """(wrong, all) golden clips, as they are and on their sides."""
    wrong = 0
    for frames, most, height, width, taken, merged in GOLDEN_CLIPS:
        video = VideoConfig(max_frames=most)
        turned = (merged[0], merged[2], merged[1])
        for sides, grid in (((height, width), merged), ((width, height), turned)):
            size = MediaSize(kind="video", height=sides[0], width=sides[1], frames=frames, fps=30.0)
            wrong += encode.media_grid(size, ImageConfig(), video).merged != grid
            wrong += len(choose_frames(frames, 30.0, video)) != taken
    return wrong, 2 * len(GOLDEN_CLIPS)


def clips_off_cap(count: int) -> tuple[int, int, int]:
    """(above the cap, below 4 tokens a temporal patch, frames not even or not as planned) of random clips."""
    random = np.random.default_rng(4)
    above = below = other = 0
    for number in range(count):
        side = float(np.exp(random.uniform(0, np.log(4000))))
        height, width = max(1, int(side)), max(1, round(int(side) * float(np.exp(random.uniform(-5.29, 5.29)))))
        frames, fps = int(np.exp(random.uniform(0, np.log(10**6)))), float(random.uniform(0.1, 120))
        cap = 16384 if number % 2 else int(np.exp(random.uniform(np.log(4), np.log(20000))))
        if max(height, width) > 200 * min(height, width):
            height = width
        video = VideoConfig(max_tokens=cap, max_frames=(768, None, 4)[number % 3])
        size = MediaSize(kind="video", height=height, width=width, frames=frames, fps=fps)
        grid, chosen = encode.media_grid(size, ImageConfig(), video), choose_frames(frames, fps, video)
        above += grid.num_tokens > cap
        below += grid.num_tokens // grid.time < 4
        ends = chosen[0] == 0 and chosen[-1] == frames - 1 and np.ptp(np.diff(chosen)) <= 1
        other += len(chosen) % 2 != 0 or len(chosen) != 2 * grid.time or not ends
    return above, below, other


def still_difference() -> float:
    """Largest difference between the two frames of a temporal patch, of a picture and of a clip of one frame."""
    shown = MediaSize(kind="image", height=70, width=90)
    clip = MediaSize(kind="video", height=48, width=64, frames=1, fps=8.0)
    reader = PatchReader(IMAGE, VIDEO)
    worst = 0.0
    for data, kind, size in ((picture_bytes(70, 90), "png", shown), (clip_bytes(frames=1), "mp4", clip)):
        frames = reader.read(_sample(data, kind), (0,), [size]).reshape(-1, 3, 2, 196)
        assert frames.size, "nothing was read"
        worst = max(worst, float(np.abs(frames[:, :, 0] - frames[:, :, 1]).max()))
    reader.close()
    return worst


def wrong_frames() -> tuple[int, int]:
    """(wrong, all) frames of a thinned clip, by their grey, that are not those the rule names: 12 of 40, evenly."""
    image, video = ImageConfig(min_pixels=784), VideoConfig(fps=8.0, max_frames=None, max_tokens=24)
    size = MediaSize(kind="video", height=48, width=64, frames=40, fps=8.0)
    reader = PatchReader(image, video)
    patches = reader.read(_sample(clip_bytes(frames=40), "mp4"), (0,), [size])
    reader.close()
    frames = patches.reshape(-1, 16, 3, 2, 196)[:, 0, 0, :, 0].reshape(-1)
    seen = (frames * 0.26862954 + 0.48145466) * 255
    due = [10 + round(i * 39 / 11) * 235 // 40 for i in range(12)]
    return (int((np.abs(seen - due) > 2.5).sum()) if len(seen) == 12 else 12), 12
