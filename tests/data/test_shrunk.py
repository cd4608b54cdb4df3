"""Samples that no row takes, read at the size they were shrunk to."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from data.encoding.tokenizer import Tokenizer
from data.loading.media import PatchReader
from data.loading.rows import build_reader, open_indexes
from data.plan.lengths import source_lengths
from data.plan.plan import Cursor, Plan
from data.types import RawSample
from data.visual.pictures import decode_image
from tests.data.conftest import clip_bytes, picture_bytes

Make = Callable[..., Any]


def test_what_was_shrunk_is_read_at_the_models_own_smaller_size(
    make_source: Make, make_config: Make, tokenizer: Tokenizer
) -> None:
    """Pictures equal transformers' processor with the smaller limit; clips, those of a recipe that asks for so many."""
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    stored = {"image": ("png", picture_bytes(300, 500)), "video": ("mp4", clip_bytes())}
    samples = [
        RawSample(
            key=kind, content={"parts": [{"type": kind, "media": 0}, {"type": "text", "text": "a"}]}, media={0: m}
        )
        for kind, m in stored.items()
    ]
    config = make_config(
        make_source(samples=samples), too_long="shrink", tokens_per_row=10, patches_per_row=60, window=2
    )
    config = replace(config, image=replace(config.image, max_pixels=1 << 20))
    (index,) = indexes = open_indexes(config)
    plan, reader = Plan(config, indexes), build_reader(config, tokenizer, indexes)
    caps = source_lengths(config, 0, index).caps
    rows = {row.samples[0][1]: reader.read(row)[0] for row in plan.step(Cursor()).rows if len(row.samples) == 1}
    assert sorted(caps) == sorted(rows) == [0, 1]
    for number, row in rows.items():
        raw, sizes, cap = index.read_raw(number), index.media_sizes(number), caps[number]
        assert 0 < len(row.patches) <= config.patches_per_row
        assert len(row.tokens) <= config.tokens_per_row
        if sizes[0].kind == "image":
            limits = {"shortest_edge": 28 * 28, "longest_edge": cap * 28 * 28}
            given = Qwen2VLImageProcessorPil(size=limits)(decode_image(raw.media[0][1]), return_tensors="np")
            assert row.grids.tolist() == given["image_grid_thw"].tolist()
            np.testing.assert_allclose(row.patches, given["pixel_values"], atol=1e-6)
        else:
            asked = PatchReader(config.image, replace(config.video, max_tokens=cap))
            assert np.array_equal(row.patches, asked.read(raw, [0], sizes))
            asked.close()
    reader.close()
