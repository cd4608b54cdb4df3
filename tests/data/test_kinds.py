"""One sample of each kind of data: its tokens and mask as written down, and as transformers has them."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("sklearn")
pytest.importorskip("skimage")
pytest.importorskip("matplotlib")

from data.config import IGNORE
from data.encoding.encode import encode_sample, media_grid
from data.encoding.tokenizer import Tokenizer
from data.formats.shards import write_shards
from data.index.build import build_index
from data.loading.media import PatchReader
from data.samples.kinds import KINDS, kind_sample
from data.visual.decode import ClipDecoder
from tests.data.golden_kinds import FILE, IMAGE, VIDEO, golden_tokenizer, measured, readable
from tests.harness.chat_judge import ChatJudge

SEEDS = 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("golden")


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Tokenizer:
    return golden_tokenizer(folder)


@pytest.fixture(scope="module")
def judge(tokenizer: Tokenizer, folder: Path) -> ChatJudge:
    return ChatJudge(folder)


@pytest.fixture(scope="module")
def decoder() -> Iterator[ClipDecoder]:
    made = ClipDecoder(60.0)
    yield made
    made.close()


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_and_mask_are_those_written_down(kind: str, tokenizer: Tokenizer, decoder: ClipDecoder) -> None:
    golden: dict[str, Any] = json.loads(FILE.read_text("utf-8"))
    assert list(golden) == list(KINDS)
    encoded = encode_sample(*measured(kind, 0, decoder), tokenizer, IMAGE, VIDEO)
    assert readable(encoded, tokenizer) == golden[kind]


@pytest.mark.parametrize("kind", KINDS)
def test_ids_and_mask_are_those_of_the_chat_template(
    kind: str, tokenizer: Tokenizer, judge: ChatJudge, decoder: ClipDecoder
) -> None:
    for number in range(SEEDS):
        content, sizes = measured(kind, number, decoder)
        encoded = encode_sample(content, sizes, tokenizer, IMAGE, VIDEO)
        lengths = [media_grid(size, IMAGE, VIDEO).num_tokens for size in sizes]
        ids, learnt = (judge.judge if "messages" in content else judge.judge_document)(content, lengths)
        assert encoded.tokens.tolist() == ids
        assert [target != IGNORE for target in encoded.targets.tolist()] == [*learnt[1:], False]
        assert any(learnt)


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_numbers_give_the_same_sample(kind: str) -> None:
    assert kind_sample(kind, 1, 2) == kind_sample(kind, 1, 2)
    assert kind_sample(kind, 1, 2) != kind_sample(kind, 1, 3)
    assert kind_sample(kind, 1, 2).content["source"] == kind


def test_every_kind_can_be_stored_indexed_and_read(tokenizer: Tokenizer, tmp_path: Path) -> None:
    write_shards(tmp_path, "all", (kind_sample(kind, 0, 0) for kind in KINDS), 5)
    index = build_index(tmp_path, tokenizer)
    assert len(index) == len(KINDS) and index.meta["refused"] == []
    reader = PatchReader(IMAGE, VIDEO)
    for number, kind in enumerate(KINDS):
        raw, sizes = index.read_raw(number), index.media_sizes(number)
        assert raw == kind_sample(kind, 0, 0)
        encoded = encode_sample(raw.content, sizes, tokenizer, IMAGE, VIDEO)
        assert len(encoded.tokens) == index.columns["num_text_tokens"][number] + len(encoded.visual_index)
        assert (encoded.targets >= 0).sum() == index.columns["num_targets"][number] > 0
        patches = reader.read(raw, encoded.media, sizes)
        assert len(patches) == encoded.grids.prod(axis=1).sum() == 4 * len(encoded.visual_index)
    reader.close()
