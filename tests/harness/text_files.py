"""Token files against megatron-core's own reader and writer, which define the format; and documents in rows."""

import json
from pathlib import Path

import numpy as np

from data.config import IGNORE, DataConfig, SourceConfig
from data.encoding.tokenizer import Tokenizer, load_tokenizer
from data.errors import MismatchError
from data.index.mmap_text import TextIndex, build_text
from data.loading.rows import build_reader
from data.plan.plan import Cursor, Plan
from tests.data.conftest import train_tokenizer

DOCUMENTS = 300
ROW = 512  # tokens; no document has more
WORDS = ("the", "digit", "moves", "left", "right", "3", "Gr\u00fc\u00dfe", "<|im_end|>", "\n")


def text_faults(folder: Path) -> dict[str, int]:
    """Of DOCUMENTS: with other tokens in either direction; other than alone in a packed row; changes not noticed."""
    train_tokenizer(folder / "tokenizer")
    tokenizer = load_tokenizer(folder / "tokenizer")
    generator = np.random.default_rng(0)
    texts = [" ".join(generator.choice(WORDS, generator.integers(1, 25))) for _ in range(DOCUMENTS)]
    (folder / "in.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts), "utf-8")
    build_text(folder / "in.jsonl", folder / "ours", tokenizer)
    documents = [[*tokenizer.encode(text), tokenizer.ids.end_of_text] for text in texts]
    assert max(map(len, documents)) <= ROW
    return {
        "ours": _read_by_megatron(folder / "ours", documents),
        "theirs": _written_by_megatron(folder / "theirs", documents),
        "packed": _packed(folder, documents, tokenizer),
        "unnoticed": _unnoticed(folder / "ours", tokenizer),
    }


def _differing(found: list[list[int]], documents: list[list[int]]) -> int:
    wrong = sum(one != other for one, other in zip(found, documents, strict=False))
    return wrong + abs(len(found) - len(documents))


def _read_by_megatron(prefix: Path, documents: list[list[int]]) -> int:
    from megatron.core.datasets.indexed_dataset import IndexedDataset

    theirs = IndexedDataset(str(prefix))
    borders = theirs.document_indices.tolist() != list(range(len(documents) + 1))
    return borders + _differing([theirs[i].tolist() for i in range(len(theirs))], documents)


def _written_by_megatron(prefix: Path, documents: list[list[int]]) -> int:
    """Every other document in two sequences, as megatron's own builder leaves them."""
    import torch
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=np.int32)
    for number, tokens in enumerate(documents):
        cut = len(tokens) // 2 if number % 2 else len(tokens)
        for sequence in (tokens[:cut], tokens[cut:]):
            if sequence:
                builder.add_item(torch.tensor(sequence))
        builder.end_document()
    builder.finalize(f"{prefix}.idx")
    index = TextIndex(prefix, ROW)
    return _differing([index.encode(i, 1 << 20).tokens.tolist() for i in range(len(index))], documents)


def _packed(folder: Path, documents: list[list[int]], tokenizer: Tokenizer) -> int:
    """Documents of one epoch's rows that are not as in a row of their own: tokens, targets, positions, borders."""
    config = DataConfig(
        tokenizer=str(tokenizer.folder),
        sources=(SourceConfig(name="text", path=str(folder / "ours")),),
        tokens_per_row=ROW,
        patches_per_row=0,
        rows_per_step=1,
        window=len(documents),
        seed=0,
    )
    reader = build_reader(config, tokenizer)
    plan = Plan(config, [TextIndex(folder / "ours", ROW)])
    cursor, seen, wrong = Cursor(), 0, 0
    while seen < len(documents):
        step = plan.step(cursor)
        cursor = step.next_cursor
        row, _ = reader.read(step.rows[0])
        ends = row.segment_lengths.cumsum().tolist()
        assert len(ends) == len(step.rows[0].samples)
        for (_, number), start, end in zip(step.rows[0].samples, [0, *ends], ends, strict=False):
            alone = documents[number]
            wrong += (
                row.tokens[start:end].tolist() != alone
                or row.targets[start:end].tolist() != [*alone[1:], IGNORE]
                or row.positions[:, start:end].tolist() != [list(range(len(alone)))] * 3
            )
            seen += 1
    reader.close()
    return wrong + seen - len(documents)


def _unnoticed(prefix: Path, tokenizer: Tokenizer) -> int:
    """Of a flipped bit at 16 places of the .bin and another .bin of the same size, not named at start or in full."""
    path = prefix.with_name(f"{prefix.name}.bin")
    whole = path.read_bytes()
    changed = [bytes(whole[::-1])]
    for place in np.linspace(0, len(whole) - 1, 16).astype(int).tolist():
        changed.append(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
    missed = 0
    for data in changed:
        path.write_bytes(data)
        index = TextIndex(prefix, ROW)
        missed += not any("has digest" in fault for fault in index.compare())
        try:
            index.check(tokenizer)
        except MismatchError as error:
            missed += f"{path} changed" not in str(error)
        else:
            missed += 1
    path.write_bytes(whole)
    return missed
