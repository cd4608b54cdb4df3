"""Parameter counts of the published sizes, from canonical shapes."""

import math

import pytest

from model.hf_weights import canonical_shape, hf_pieces
from train.resolve import compose


@pytest.mark.parametrize(
    ("name", "total", "visual"),
    [
        ("qwen2vl_2b", 2_208_985_600, None),
        ("qwen2vl_7b", 8_291_375_616, 675_759_104),
        ("qwen2vl_72b", 73_405_560_320, None),
    ],
)
def test_published_counts(name: str, total: int, visual: int | None) -> None:
    model = compose(f"{name}_stage2").model
    sizes = {key: math.prod(canonical_shape(pieces)) for key, pieces in hf_pieces(model).items()}
    assert sum(sizes.values()) == total
    if visual is not None:  # the tower and its merger
        assert sum(size for key, size in sizes.items() if not key.startswith("language.")) == visual
