"""Defects for tests/prove/data_video.py. Each breaks this process and returns how to mend it."""

import hashlib
from collections.abc import Callable
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

from tests.data.changed_child import change_child
from tests.prove.planting import Mend, replace_name


def checksums_off() -> Mend:
    """Every checksum of the cache is 0."""
    from data.visual import cache_file

    return replace_name(cache_file, "google_crc32c", lambda _: SimpleNamespace(value=lambda _: 0))


def slow_checksum() -> Mend:
    """Frames are checked by a digest that a few hundred MB a second pass through."""
    from data.visual import cache_file

    def value(data: Any) -> int:
        return int.from_bytes(hashlib.md5(data).digest()[:4], "little")

    return replace_name(cache_file, "google_crc32c", lambda _: SimpleNamespace(value=value))


def key_without_indices() -> Mend:
    """The cache's key does not say which frames."""
    from data.visual.decode import ClipRequest

    def digest(self: Any) -> str:
        return hashlib.blake2b(self.data + bytes([self.height // 4, self.width // 4]), digest_size=16).hexdigest()

    return replace_name(ClipRequest, "digest", lambda _: property(digest))


def key_without_size() -> Mend:
    """The cache's key does not say how large the frames are."""
    from data.visual.decode import ClipRequest

    def digest(self: Any) -> str:
        return hashlib.blake2b(self.data + self.indices.tobytes(), digest_size=16).hexdigest()

    return replace_name(ClipRequest, "digest", lambda _: property(digest))


def evicted_by_age() -> Mend:
    """What was read longest ago goes first, whatever the plan says."""
    from data.visual import cache_room

    def by_age(entries: Any) -> Any:
        return [(entry, None) for entry in sorted(entries, key=lambda entry: entry.used)]

    return replace_name(cache_room, "eviction_order", lambda _: by_age)


def evicted_nearest_first() -> Mend:
    """What is needed next goes first."""
    from data.visual import cache_room

    return replace_name(cache_room, "eviction_order", lambda order: lambda entries: order(entries)[::-1])


def hang_forgotten() -> Mend:
    """No decoder's failure is remembered."""
    from data.visual.decode_verdicts import Verdicts

    return replace_name(Verdicts, "reason", lambda _: lambda *_: None)


def hang_not_told() -> Mend:
    """A decoder's failure is remembered by its process alone."""
    from data.visual.decode_verdicts import Verdicts

    def make(add: Any) -> Any:
        return lambda self, request, decoder, reason, limits, shared: add(self, request, decoder, reason, limits, False)

    return replace_name(Verdicts, "add", make)


def no_second_opinion() -> Mend:
    """decord alone says what is a bad clip."""
    from data.visual import decode

    return replace_name(decode, "DECODERS", lambda decoders: decoders[:1])


def decord_believed() -> Mend:
    """decord's frame numbers are taken wherever it opens a clip."""
    return change_child(
        "packets = count_exact_frames(data)", "packets = len(decord.VideoReader(io.BytesIO(data), num_threads=1))"
    )


def orphans() -> Mend:
    """A decoder does not look whether its parent lives."""
    return change_child("while os.getppid() == parent:", "while True:")


def unfinished_never_swept() -> Mend:
    """What a killed writer left stays."""
    from data.visual import cache_room

    return replace_name(cache_room, "_abandoned", lambda _: lambda part: False)


def bound_forgotten() -> Mend:
    """Nobody counts what the others have written."""
    from data.visual import cache_room

    return replace_name(cache_room, "_read_account", lambda _: lambda lock: cache_room.Account(used=0))


def full_disk_raises() -> Mend:
    """A disk's failure goes up to the trainer."""
    from data.visual.decode_cache import DecodeCache

    return replace_name(DecodeCache, "_bypass", lambda _: lambda self: nullcontext())


def anything_is_ours() -> Mend:
    """A file is the cache's if it is where the cache's files are."""
    import os

    from data.visual import cache_room, decode_cache

    def opened(path: Any, flags: int = os.O_RDONLY) -> int | None:
        try:
            return os.open(path, flags)
        except OSError:
            return None

    mends = [replace_name(place, "open_own", lambda _: opened) for place in (cache_room, decode_cache)]
    return lambda: [mend() for mend in mends] and None


def half_pictures_believed() -> Mend:
    """A picture that ends too early is shown as far as it goes."""
    from PIL import ImageFile

    return replace_name(ImageFile, "LOAD_TRUNCATED_IMAGES", lambda _: True)


PLANTS: dict[str, tuple[Callable[[], Mend], tuple[str, ...]]] = {
    "video_checksums_off": (checksums_off, ("video/damage",)),
    "video_slow_checksum": (slow_checksum, ("video/warm",)),
    "video_key_without_indices": (key_without_indices, ("video/same pixels",)),
    "video_key_without_size": (key_without_size, ("video/same pixels",)),
    "video_evicted_by_age": (evicted_by_age, ("video/next use",)),
    "video_evicted_nearest_first": (evicted_nearest_first, ("video/next use",)),
    "video_hang_forgotten": (hang_forgotten, ("video/hang",)),
    "video_hang_not_told": (hang_not_told, ("video/hang",)),
    "video_no_second_opinion": (no_second_opinion, ("video/hang",)),
    "video_decord_believed": (decord_believed, ("video/frame numbers",)),
    "video_orphans": (orphans, ("video/killed reader",)),
    "video_unfinished_never_swept": (unfinished_never_swept, ("video/crowd",)),
    "video_bound_forgotten": (bound_forgotten, ("video/crowd",)),
    "video_full_disk_raises": (full_disk_raises, ("video/full disk",)),
    "video_anything_is_ours": (anything_is_ours, ("video/foreign",)),
    "video_half_pictures_believed": (half_pictures_believed, ("video/bad media",)),
}
