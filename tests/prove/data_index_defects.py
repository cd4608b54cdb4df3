"""Defects for tests/prove/data_index.py. Each breaks this process and returns how to mend it."""

from collections.abc import Callable, Iterable
from typing import Any

from tests.prove import data_format_defects
from tests.prove.planting import Mend, replace_name


def every_picture_decoded() -> Mend:
    """Readers decode all pixels though nobody asked."""
    from data.index import build as index_build

    def make(settings: Any) -> Any:
        return lambda **fields: settings(**fields | {"decode_pictures": True})

    return replace_name(index_build, "IndexSettings", make)


def parts_in_order_of_their_names() -> Mend:
    """Parts are laid one after the other as their files lie, which is by digest."""
    from data.index import build as index_build

    def make(merge: Any) -> Any:
        def planted(place: Any, settings: Any, shards: Any) -> None:
            merge(place, settings, sorted(shards, key=lambda shard: settings.part_path(shard.name)))

        return planted

    return replace_name(index_build, "_merge", make)


def no_part_is_kept() -> Mend:
    """An index that goes on starts over."""
    from data.index import shard as index_shard

    return replace_name(index_shard, "load_part", lambda _: lambda settings, shard: None)


def same_name_is_same_shard() -> Mend:
    """A part is believed of a shard of its name."""
    from data.index.shard import ShardIndexer

    return replace_name(ShardIndexer, "_is_same", lambda _: lambda self, shard, stored: True)


def same_size_is_same_shard() -> Mend:
    """Of a local shard only the size is compared."""
    from data.index.shard import ShardIndexer

    return replace_name(ShardIndexer, "_is_same", lambda _: lambda self, shard, stored: shard.size == stored.size)


def any_way_of_reading() -> Mend:
    """Parts do not remember how they were read."""
    from data.index.part import IndexSettings

    original = IndexSettings.__dict__["meta"]
    IndexSettings.meta = property(lambda self: {})  # type: ignore[method-assign,assignment]
    return lambda: setattr(IndexSettings, "meta", original)


def etags_not_compared() -> Mend:
    """A shard of the same size is the same."""
    from data.index import file as index_file

    def make(info: Any) -> Any:
        return lambda **fields: info(**fields | {"etag": None})

    return replace_name(index_file, "ShardInfo", make)


def shards_of_a_size_believed() -> Mend:
    """A start looks into no shard."""
    from data.index.file import Index

    return replace_name(Index, "_changed_shards", lambda _: lambda self: [])


def template_not_compared() -> Mend:
    """An index of another chat template is taken."""
    from data.index.file import Index

    def make(check: Any) -> Any:
        def planted(self: Any, tokenizer: Any) -> None:
            from data.index import file as index_file

            whole = Index(self.store, self.meta | {"template": index_file.TEMPLATE_DIGEST}, self.columns)
            check(whole, tokenizer)

        return planted

    return replace_name(Index, "check", make)


def format_not_compared() -> Mend:
    """An index of another version of its format is taken."""
    from data.index.file import Index

    def make(check: Any) -> Any:
        def planted(self: Any, tokenizer: Any) -> None:
            from data.formats.stored import FORMATS

            version = FORMATS[self.meta["format"]].version
            check(Index(self.store, self.meta | {"format_version": version}, self.columns), tokenizer)

        return planted

    return replace_name(Index, "check", make)


def samples_not_compared() -> Mend:
    """`--check` looks at digests of shards alone."""
    from data.index import check as index_check

    def make(compare: Any) -> Any:
        return lambda index, shard, samples: compare(index, shard, samples[:0])

    return replace_name(index_check, "_compare", make)


def digests_not_compared() -> Mend:
    """`--check` looks at samples alone."""
    from data.index import check as index_check

    def make(compare: Any) -> Any:
        return lambda *of: [fault for fault in compare(*of) if " has digest " not in fault]

    return replace_name(index_check, "_compare", make)


def end_of_archive_unchecked() -> Mend:
    """Zero blocks end a shard, whatever follows."""
    from data.formats import shards

    return replace_name(shards, "_check_end", lambda _: lambda read, place, size: None)


def cut_shards_end_early() -> Mend:
    """A shard that is cut ends where it is cut, as for webdataset's own reader."""
    from data.errors import FormatError
    from data.formats import shards

    def make(members: Any) -> Any:
        def planted(*of: Any, **options: Any) -> Any:
            try:
                yield from members(*of, **options)
            except FormatError as error:
                if "truncated" not in str(error):
                    raise

        return planted

    return replace_name(shards, "_members", make)


def refused_in_silence() -> Mend:
    """A sample that is left out is not listed."""
    from data.index.part import PartRows

    return replace_name(PartRows, "refuse", lambda _: lambda self, key, reason, torn=False: None)


def last_member_wins() -> Mend:
    """Of two members of a name the last one is taken."""
    from data.formats import shards
    from data.formats.stored import FORMATS

    def planted(members: Iterable[Any], data: bytes, offset: int, format_name: str) -> Any:
        found, key = {}, ""
        for member in members:
            key, found[member.suffix] = member.key, data[member.data - offset : member.data - offset + member.size]
        return FORMATS[format_name].read(key, found)

    return replace_name(shards, "_read", lambda _: planted)


def keys_may_come_back() -> Mend:
    """A key that was there before is another sample."""
    from data.formats import shards

    def make(stored: Any) -> Any:
        return lambda group, stream, seen: stored(group, stream, set())

    return replace_name(shards, "_stored", make)


def unused_members_kept() -> Mend:
    """Pictures that no part shows do not matter."""
    from data.index import measure

    def make(_: Any) -> Any:
        return lambda raw, runs: [
            (run.kind, run.member) for run in runs if isinstance(run, measure.Visual) and run.member in raw.media
        ]

    return replace_name(measure, "shown_media", make)


def a_crash_ends_the_batch() -> Mend:
    """All that was asked about with a picture that crashes goes with it."""
    from data.index.probe import PictureProbe

    def make(ask: Any) -> Any:
        def planted(self: Any, pictures: Any) -> Any:
            found = ask(self, pictures)
            return found + [found[-1]] * (len(pictures) - len(found))

        return planted

    return replace_name(PictureProbe, "_ask", make)


def the_next_is_blamed() -> Mend:
    """The picture after the one that ended the decoder is left out."""
    from data.index.probe import PictureProbe

    def make(sizes: Any) -> Any:
        def planted(self: Any, pictures: Any) -> Any:
            found = sizes(self, pictures)
            return [found[-1], *found[:-1]]

        return planted

    return replace_name(PictureProbe, "sizes", make)


_RATE = tuple(f"index/rate/{kind}" for kind in ("captions of 12 words",))
PLANTS: dict[str, tuple[Callable[[], Mend], tuple[str, ...]]] = data_format_defects.PLANTS | {
    "every_picture_decoded": (every_picture_decoded, _RATE),
    "parts_in_order_of_their_names": (parts_in_order_of_their_names, ("index/resumed",)),
    "no_part_is_kept": (no_part_is_kept, ("index/resumed",)),
    "same_name_is_same_shard": (same_name_is_same_shard, ("index/parts",)),
    "same_size_is_same_shard": (same_size_is_same_shard, ("index/parts",)),
    "any_way_of_reading": (any_way_of_reading, ("index/parts",)),
    "shards_of_a_size_believed": (shards_of_a_size_believed, ("index/compared",)),
    "etags_not_compared": (etags_not_compared, ("index/compared",)),
    "template_not_compared": (template_not_compared, ("index/compared",)),
    "format_not_compared": (format_not_compared, ("index/compared",)),
    "samples_not_compared": (samples_not_compared, ("index/compared",)),
    "digests_not_compared": (digests_not_compared, ("index/compared",)),
    "end_of_archive_unchecked": (end_of_archive_unchecked, ("index/shard/a sample's blocks zeroed",)),
    "cut_shards_end_early": (cut_shards_end_early, ("index/shard/cut between samples",)),
    "refused_in_silence": (refused_in_silence, ("index/sample/no JSON",)),
    "last_member_wins": (last_member_wins, ("index/sample/a picture's name twice",)),
    "keys_may_come_back": (keys_may_come_back, ("index/sample/a key twice",)),
    "unused_members_kept": (unused_members_kept, ("index/sample/more pictures than parts",)),
    "a_crash_ends_the_batch": (a_crash_ends_the_batch, ("index/pictures",)),
    "the_next_is_blamed": (the_next_is_blamed, ("index/pictures",)),
}
