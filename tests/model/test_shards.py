"""What the ranks of a layout hold adds up, rank by rank, without any memory."""

from dataclasses import replace

import pytest

from model.shards import report_lines, shard_report
from parallel.config import ParallelConfig
from tests.harness.layouts import MODEL
from train.resolve import compose


@pytest.mark.parametrize(
    ("name", "tensor", "pipeline"),
    [("2b", 1, 1), ("2b", 2, 8), ("7b", 1, 4), ("7b", 4, 2), ("72b", 8, 8)],
)
def test_shards_add_up(name: str, tensor: int, pipeline: int) -> None:
    model = compose(f"qwen2vl_{name}_stage2").model
    report = shard_report(model, ParallelConfig(tensor=tensor, pipeline=pipeline))
    assert report.total == {"2b": 2_208_985_600, "7b": 8_291_375_616, "72b": 73_405_560_320}[name]
    assert report.unaccounted == 0 and report.padded == 0
    assert len(report.held) == pipeline and all(len(set(stage)) == 1 for stage in report.held)
    # By hand: a merger is LN(1280) 2 E, 5120 x 5120 + 5120, 5120 x H + H.
    width = model.language.hidden_size
    merger = 2 * 1280 + 5120 * 5120 + 5120 + 5120 * width + width
    found = sum(count for key, count in report.replicated.items() if key.startswith("merger."))
    assert found == merger * (tensor - 1)
    tied = report.replicated.get("language.embedding.word_embeddings.weight", 0)
    assert tied == (151936 * 1536 if name == "2b" and pipeline > 1 else 0)


def test_vocabulary_padding_is_told() -> None:
    report = shard_report(MODEL, ParallelConfig(tensor=2, pipeline=2))
    assert MODEL.language.vocab_size % 2 == 1 and MODEL.language.tie_embeddings
    assert report.padded == 2 * MODEL.language.hidden_size  # one row of the embedding, one of its copy
    assert report.unaccounted == 0
    assert report_lines(report, ParallelConfig(tensor=2, pipeline=2))[-1] == "  vocabulary padding: 128"


def test_a_lost_shard_is_noticed() -> None:
    report = shard_report(MODEL, ParallelConfig(tensor=2))
    assert replace(report, held=((report.held[0][0],),)).unaccounted != 0


@pytest.mark.parametrize(("name", "tensor", "fits"), [("2b", 4, "1 or 2"), ("7b", 8, "1 or 2 or 4")])
def test_a_layout_that_cuts_a_head_is_refused(name: str, tensor: int, fits: str) -> None:
    with pytest.raises(ValueError, match=rf"num_kv_heads=\d cannot be split over parallel.tensor={tensor}.*{fits} way"):
        shard_report(compose(f"qwen2vl_{name}_stage2").model, ParallelConfig(tensor=tensor))
