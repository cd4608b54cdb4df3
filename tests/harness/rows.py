"""Random packed rows with pictures, clips and text of uneven lengths, made without any file."""

from collections.abc import Sequence

import numpy as np

from data.config import IGNORE
from data.encoding.positions import mrope_positions
from data.loading import rows
from data.plan.plan import RowPlan
from data.types import EncodedSample, PackedRow

PATCH_DIM = 1176
GRIDS = ((1, 4, 6), (1, 2, 4), (3, 4, 2), (1, 6, 2), (4, 2, 2))
"""Stills and clips, none square; the last clip has more time steps than its merged grid has rows or columns."""
ODD_GRIDS = ((1, 3, 9), (1, 3, 3), (1, 6, 3), (3, 3, 3), (4, 3, 3))
"""The like for a merger of 3x3 patches: of 2x2 patches there is always a multiple of 4, which 2 and 4 ranks share."""


def random_sample(
    generator: np.random.Generator, vocab_size: int, grids: list[tuple[int, int, int]], merge: int = 2
) -> dict[str, np.ndarray]:
    """One sample: text, then each grid followed by more text. Vision positions and the first text are unsupervised.

    A block of `merge` x `merge` patches becomes one visual token.
    """
    pieces, spans, visual_index, supervised = [], [], [], []
    length = 0

    def text(count: int, learn: bool) -> None:
        nonlocal length
        pieces.append(generator.integers(8, vocab_size, count))
        supervised.extend([learn] * count)
        length += count

    text(int(generator.integers(2, 6)), learn=not grids)
    for time, height, width in grids:
        count = time * height * width // merge**2
        spans.append((length, (time, height // merge, width // merge)))
        visual_index.append(np.arange(length, length + count))
        pieces.append(np.full(count, 7))
        supervised.extend([False] * count)
        length += count
        text(int(generator.integers(2, 9)), learn=True)
    tokens = np.concatenate(pieces)
    targets = np.full(length, IGNORE, dtype=np.int64)
    learn = np.array(supervised[1:])
    targets[:-1][learn] = tokens[1:][learn]
    patches = sum(t * h * w for t, h, w in grids)
    return {
        "tokens": tokens.astype(np.int64),
        "targets": targets,
        "positions": mrope_positions(length, spans),
        "grids": np.array(grids, dtype=np.int64).reshape(-1, 3),
        "visual_index": np.concatenate(visual_index) if visual_index else np.empty(0, dtype=np.int64),
        "patches": generator.standard_normal((patches, PATCH_DIM), dtype=np.float32),
    }


def text_sample(generator: np.random.Generator, vocab_size: int, tokens: int) -> dict[str, np.ndarray]:
    """A sample of `tokens` tokens without pictures, each but the first to be learnt."""
    ids = generator.integers(8, vocab_size, tokens)
    return {
        "tokens": ids,
        "targets": np.append(ids[1:], IGNORE),
        "positions": mrope_positions(tokens, []),
        "grids": np.empty((0, 3), dtype=np.int64),
        "visual_index": np.empty(0, dtype=np.int64),
        "patches": np.empty((0, PATCH_DIM), dtype=np.float32),
    }


def sized_row(
    generator: np.random.Generator,
    vocab_size: int,
    tokens: int,
    grids: Sequence[tuple[int, int, int]] = (),
    merge: int = 2,
) -> PackedRow:
    """A row of exactly `tokens` tokens: one sample with `grids`, if any are given, and one of text."""
    samples = [random_sample(generator, vocab_size, list(grids), merge)] if grids else []
    left = tokens - sum(len(sample["tokens"]) for sample in samples)
    assert left > 0, f"{tokens} tokens are too few for {grids}"
    return pack([*samples, text_sample(generator, vocab_size, left)])


def pack(samples: list[dict[str, np.ndarray]]) -> PackedRow:
    """Lay samples end to end by the loader's own function."""
    patches = np.concatenate([sample["patches"] for sample in samples])
    row = RowPlan(
        samples=tuple((0, number) for number in range(len(samples))),
        num_tokens=sum(len(sample["tokens"]) for sample in samples),
        num_patches=len(patches),
        cost=0,
    )
    fields = ("tokens", "targets", "positions", "grids", "visual_index")
    encoded = [
        EncodedSample(**{name: sample[name] for name in fields}, media=tuple(range(len(sample["grids"]))))
        for sample in samples
    ]
    # Looked up at the call: a planted defect replaces it.
    return rows.pack_row(row, encoded, patches)


def random_step(
    seed: int, num_rows: int, vocab_size: int, grids: Sequence[tuple[int, int, int]] = GRIDS, merge: int = 2
) -> list[PackedRow]:
    """The rows of one step; the last row has no picture, the first holds one, several, a clip and none."""
    return [pack(samples) for samples in random_step_samples(seed, num_rows, vocab_size, grids, merge)]


def random_step_samples(
    seed: int, num_rows: int, vocab_size: int, grids: Sequence[tuple[int, int, int]] = GRIDS, merge: int = 2
) -> list[list[dict[str, np.ndarray]]]:
    """The samples of each row of `random_step`."""
    generator = np.random.default_rng(seed)
    rows = []
    for number in range(num_rows):
        if number == num_rows - 1:
            choices: list[list[tuple[int, int, int]]] = [[], []]
        elif number == 0:
            choices = [[grids[0]], [grids[1], grids[3]], [grids[4]], []]
        else:
            picks = generator.integers(0, len(grids), size=int(generator.integers(1, 3)))
            choices = [[grids[pick] for pick in picks], []]
        rows.append([random_sample(generator, vocab_size, chosen, merge) for chosen in choices])
    return rows
