"""Defects of token files for tests/prove/data_text.py. Each breaks this process and returns how to mend it."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from tests.prove.data_defects import packed_positions
from tests.prove.planting import Mend, replace_name


def sequences_as_documents() -> Mend:
    """Each sequence of a .idx is taken for a document."""
    import numpy as np

    from data.index import mmap_text

    def make(parse: Any) -> Any:
        def planted(data: bytes, name: str) -> Any:
            dtype, lengths, pointers, _ = parse(data, name)
            return dtype, lengths, pointers, np.arange(len(lengths) + 1)

        return planted

    return replace_name(mmap_text, "_parse_idx", make)


def documents_run_on() -> Mend:
    """All documents of a row are one segment."""
    from data.loading import rows

    def make(pack_row: Any) -> Any:
        def planted(row: Any, encoded: Any, patches: Any) -> Any:
            packed = pack_row(row, encoded, patches)
            lengths = packed.segment_lengths
            lengths[0], lengths[1:] = lengths.sum(), 0
            return replace(packed, segment_lengths=lengths)

        return planted

    return replace_name(rows, "pack_row", make)


def tokens_believed() -> Mend:
    """The .bin is believed as it is at the start of a run."""
    from data.index.mmap_text import TextIndex

    def make(_: Any) -> Any:
        return lambda self, tokenizer: None

    return replace_name(TextIndex, "check", make)


PLANTS: dict[str, tuple[Callable[[], Mend], tuple[str, ...]]] = {
    f"text_{apply.__name__}": (apply, ("text files",))
    for apply in (sequences_as_documents, documents_run_on, tokens_believed, packed_positions)
}
