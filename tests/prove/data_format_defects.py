"""Defects of foreign formats, for tests/prove/data_index.py. Each breaks this process and returns how to mend it."""

from collections.abc import Callable
from typing import Any

from tests.prove.planting import Mend, replace_name


def marks_not_counted() -> Mend:
    """Marks and media need not agree."""
    from data.formats import conversations

    return replace_name(conversations._Marks, "check", lambda _: lambda self: None)


def marks_from_the_end() -> Mend:
    """The last picture is put where the first mark is."""
    from data.formats import conversations

    def make(take: Any) -> Any:
        def planted(self: Any, kind: str) -> Any:
            self._left[kind].reverse()
            part = take(self, kind)
            self._left[kind].reverse()
            return part

        return planted

    return replace_name(conversations._Marks, "take", make)


def names_lead_anywhere() -> Mend:
    """A name may lead out of the media folder."""
    import pathlib

    return replace_name(pathlib.PurePath, "is_relative_to", lambda _: lambda self, *other: True)


def left_out_in_silence() -> Mend:
    """What is left out while packing is not written to the report."""
    from data.formats import pack

    def make(samples: Any) -> Any:
        class Deaf:
            def write(self, text: str) -> int:
                return 0

        return lambda records, media, report, packed, progress: samples(records, media, Deaf(), packed, progress)

    return replace_name(pack, "_samples", make)


def text_before_pictures() -> Mend:
    """Pictures of a caption stand behind it."""
    from data.formats import conversations

    def make(document: Any) -> Any:
        return lambda record, marks: document(record, marks)[::-1]

    return replace_name(conversations, "_document", make)


PLANTS: dict[str, tuple[Callable[[], Mend], tuple[str, ...]]] = {
    "marks_not_counted": (marks_not_counted, ("index/format/LLaVA",)),
    "marks_from_the_end": (marks_from_the_end, ("index/format/ShareGPT",)),
    "names_lead_anywhere": (names_lead_anywhere, ("index/format/Qwen messages",)),
    "left_out_in_silence": (left_out_in_silence, ("index/format/LLaVA",)),
    "text_before_pictures": (text_before_pictures, ("index/format/webdataset",)),
}
