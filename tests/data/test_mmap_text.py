"""Token files against megatron-core's own reader and builder, which define the format."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from megatron.core.datasets.indexed_dataset import IndexedDataset, IndexedDatasetBuilder

from data.config import IGNORE, DataConfig, SourceConfig
from data.encoding.tokenizer import Tokenizer
from data.errors import FormatError, MismatchError
from data.index import mmap_text
from data.index.mmap_text import TextIndex, build_text, is_text
from data.loading.loader import Loader
from data.loading.pool import open_readers
from data.loading.rows import build_reader, open_indexes
from data.plan.plan import Cursor, Plan, RowPlan
from data.types import PackedRow

Make = Callable[..., Any]
TEXTS = ["left and right", "one <|im_end|> two", "a " * 400, "Grüße, 世界"]


@pytest.fixture
def prefix(tmp_path: Path, tokenizer: Tokenizer) -> Path:
    lines = [json.dumps({"text": text}) for text in TEXTS]
    lines[2:2] = ['{"txt": 1}', "not json", '{"text": ""}']
    (tmp_path / "in.jsonl").write_text("\n".join(lines) + "\n", "utf-8")
    refused = build_text(tmp_path / "in.jsonl", tmp_path / "out" / "corpus", tokenizer)
    assert [line.split(":")[0] for line in refused] == ["line 3", "line 4", "line 5"]
    return tmp_path / "out" / "corpus"


def test_megatron_reads_what_is_written(prefix: Path, tokenizer: Tokenizer) -> None:
    theirs = IndexedDataset(str(prefix))
    assert len(theirs) == len(TEXTS) and theirs.document_indices.tolist() == [0, 1, 2, 3, 4]
    for document, text in zip(theirs, TEXTS, strict=True):
        assert document.tolist() == [*tokenizer.encode(text), tokenizer.ids.end_of_text]
    assert sorted(path.name for path in prefix.parent.iterdir()) == ["corpus.bin", "corpus.idx", "corpus.tokens.json"]


@pytest.mark.parametrize("dtype", [np.int32, np.uint16])
def test_what_megatron_writes_is_read(dtype: Any, tmp_path: Path) -> None:
    """Documents of several sequences are whole; one that no row takes is cut into samples."""
    builder = IndexedDatasetBuilder(str(tmp_path / "theirs.bin"), dtype=dtype)
    documents = [[[5, 6, 7], [8]], [[9] * 25], [[], [10, 11]]]
    for sequences in documents:
        for sequence in sequences:
            builder.add_item(torch.tensor(sequence, dtype=torch.int64))
        builder.end_document()
    builder.finalize(str(tmp_path / "theirs.idx"))
    index = TextIndex(tmp_path / "theirs", max_tokens=10)
    samples = [index.encode(i, 100).tokens.tolist() for i in range(len(index))]
    assert samples == [[5, 6, 7, 8], [9] * 10, [9] * 10, [9] * 5, [10, 11]]
    assert index.columns["num_text_tokens"].tolist() == [4, 10, 10, 5, 2]
    assert index.encode(0, 100).targets.tolist() == [6, 7, 8, IGNORE]
    assert index.where(3) == "theirs.bin, document 1, tokens [24:29]"
    with pytest.raises(MismatchError, match=r"document 1.*token ids from 9 to 9, the tokenizer has 9"):
        index.encode(1, 9)


def test_text_mixes_with_samples_in_one_plan(
    prefix: Path, make_source: Make, make_config: Make, tokenizer: Tokenizer
) -> None:
    config: DataConfig = make_config(make_source(clips=False))
    config = replace(config, sources=(*config.sources, SourceConfig(name="text", path=str(prefix), weight=0.5)))
    assert is_text(str(prefix)) and not is_text(config.sources[0].path)
    indexes = open_indexes(config)
    loader = Loader(
        config, Plan(config, indexes), open_readers(config, tokenizer, indexes), 0, 1, Cursor(), lambda _: None
    )
    seen = []
    for _ in range(3):
        for row in loader.next_step()[1]:
            starts = [0, *row.segment_lengths.cumsum().tolist()]
            for source, start, end in zip(row.source_ids.tolist(), starts, starts[1:], strict=False):
                if source == 1:
                    seen.append(row.tokens[start:end].tolist())
                    assert row.positions[:, start:end].tolist() == [list(range(end - start))] * 3
                    assert row.targets[start:end].tolist() == [*row.tokens[start + 1 : end].tolist(), IGNORE]
    loader.close()
    assert [*tokenizer.encode(TEXTS[0]), tokenizer.ids.end_of_text] in seen and len(seen) > 4


def test_files_that_do_not_fit_are_refused(
    prefix: Path, make_config: Make, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    idx = prefix.with_name("corpus.idx")
    whole = idx.read_bytes()
    for damaged, message in (
        (b"nothing", "no index of megatron-core's token files"),
        (whole[:-8], "do not fit together"),
        (whole[:34] + (99).to_bytes(4, "little") + whole[38:], "is damaged"),
        (whole[:46] + (9999).to_bytes(4, "little") + whole[50:], r"corpus\.bin has \d+ bytes where .*idx wants \d+"),
        (whole[:-8] + bytes(8), "is damaged"),
    ):
        idx.write_bytes(damaged)
        with pytest.raises(MismatchError, match=message):
            TextIndex(prefix, 100)
    idx.write_bytes(whole)
    prefix.with_name("corpus.tokens.json").write_text(json.dumps({"tokenizer": "another"}))
    with pytest.raises(MismatchError, match="made with the tokenizer of digest another"):
        TextIndex(prefix, 100).check(tokenizer)
    (tmp_path / "empty.jsonl").write_text("{}\n")
    with pytest.raises(FormatError, match="no line that can be used"):
        build_text(tmp_path / "empty.jsonl", tmp_path / "none", tokenizer)
    assert not list(tmp_path.glob("*none*"))


def flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("name", ["corpus.bin", "corpus.idx"])
def test_a_changed_file_of_the_same_size_is_refused_at_start(name: str, prefix: Path, tokenizer: Tokenizer) -> None:
    TextIndex(prefix, 100).check(tokenizer)
    path = prefix.with_name(name)
    if name == "corpus.bin":
        flip(path, path.stat().st_size // 2)
    else:  # other document boundaries, which make sense as well
        whole = bytearray(path.read_bytes())
        whole[-16:-8] = whole[-24:-16]
        path.write_bytes(whole)
    with pytest.raises(MismatchError, match=rf"{name} changed since it was made.*copy it again"):
        TextIndex(prefix, 100).check(tokenizer)


def test_of_a_large_file_a_start_compares_blocks_and_a_check_all(
    prefix: Path, tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mmap_text, "_BLOCK", 16)
    monkeypatch.setattr(mmap_text, "_BLOCKS", 3)
    build_text(tmp_path / "in.jsonl", prefix, tokenizer)
    path = prefix.with_name("corpus.bin")
    size = path.stat().st_size
    assert size > 200
    for place in (0, size // 2, size - 1):
        flip(path, place)
        with pytest.raises(MismatchError, match="changed since it was made"):
            TextIndex(prefix, 100).check(tokenizer)
        assert len(TextIndex(prefix, 100).compare()) == 1
        flip(path, place)
    assert TextIndex(prefix, 100).compare() == []
    flip(path, size // 4)
    TextIndex(prefix, 100).check(tokenizer)
    (told,) = TextIndex(prefix, 100).compare()
    assert "corpus.bin has digest" in told
    prefix.with_name("corpus.tokens.json").unlink()
    TextIndex(prefix, 100).check(tokenizer)
    assert "has no digest" in TextIndex(prefix, 100).compare()[0]


def test_an_interrupt_leaves_nothing_half(
    prefix: Path, tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever it comes: the old files, or none; never a new .bin beside an old .idx."""
    before = {path.name: path.read_bytes() for path in prefix.parent.iterdir()}

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_text(tmp_path / "in.jsonl", prefix, tokenizer, interrupt)
    assert {path.name: path.read_bytes() for path in prefix.parent.iterdir()} == before
    replace_file = Path.replace
    monkeypatch.setattr(Path, "replace", lambda *way: interrupt() if way[1].suffix == ".idx" else replace_file(*way))
    with pytest.raises(KeyboardInterrupt):
        build_text(tmp_path / "in.jsonl", prefix, tokenizer)
    assert list(prefix.parent.iterdir()) == []


def test_documents_in_one_row_are_as_each_alone(prefix: Path, make_config: Make, tokenizer: Tokenizer) -> None:
    """Nothing of one reaches the other: attention goes by segments, which end where documents do."""
    config: DataConfig = make_config(prefix, tokens_per_row=4000)
    reader = build_reader(config, tokenizer)
    lengths = reader._indexes[0].columns["num_text_tokens"].tolist()

    def read(*documents: int) -> PackedRow:
        samples = tuple((0, document) for document in documents)
        tokens = sum(lengths[document] for document in documents)
        return reader.read(RowPlan(samples=samples, num_tokens=tokens, num_patches=0, cost=0))[0]

    both, alone = read(1, 3), [read(1), read(3)]
    assert both.segment_lengths.tolist() == [lengths[1], lengths[3]]
    for name, axis in (("tokens", 0), ("targets", 0), ("positions", 1)):
        assert np.array_equal(getattr(both, name), np.concatenate([getattr(row, name) for row in alone], axis))
    assert both.targets[lengths[1] - 1] == IGNORE and both.positions[:, lengths[1]].tolist() == [0, 0, 0]
    reader.close()
