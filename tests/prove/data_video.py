"""Decoding clips and keeping their frames (item 7), and media that are bad (item 6)."""

from tests.prove import data_video_faults as faults
from tests.prove import data_video_measures as measures
from tests.prove.case import Case, Cell, Injected
from tests.prove.context import Context

WARM_SHARE = 1 / 50  # of the time that decoding takes
CROWD_SECONDS = 12.0


def cases() -> dict[str, Case]:
    """Every case by its key."""
    return {
        "video/warm": _warm(),
        "video/same pixels": _same_pixels(),
        "video/frame numbers": _frame_numbers(),
        "video/next use": _next_use(),
        "video/hang": _hang(),
        "video/damage": _damage(),
        "video/crowd": _crowd(),
        "video/killed reader": _killed_reader(),
        "video/full disk": _full_disk(),
        "video/foreign": _foreign(),
        "video/bad media": _bad_media(),
    }


def _warm() -> Case:
    sizes = ((364, 644), (140, 252))
    names = tuple(f"warm read of 32 frames of {h}x{w}, key and checksum included, over decoding them" for h, w in sizes)

    def run(context: Context) -> list[Cell]:
        cells = []
        for name, (height, width) in zip(names, sizes, strict=True):
            share, milliseconds = context.run_here(measures.warm_share, height=height, width=width)
            cells.append(Cell(name=name, measured=share, limit=WARM_SHARE, unit=f"of decoding; {milliseconds:.1f} ms"))
        return cells

    return Case(item=7, names=names, run=run)


def _same_pixels() -> Case:
    name = "values of patches with another bit than without the cache, cold or warm"

    def run(context: Context) -> list[Cell]:
        wrong, total = context.run_here(measures.differing_bits)
        return [Cell(name=name, measured=wrong, limit=0, unit=f"of {total:,}")]

    return Case(item=7, names=(name,), run=run)


def _frame_numbers() -> Case:
    wrong_name = "frames that do not show the number asked for, in ten containers and codecs"
    differ_name = "frames that are not those of PyAV read from the start"

    def run(context: Context) -> list[Cell]:
        wrong, differ, total = context.run_here(measures.wrong_frames)
        return [
            Cell(name=wrong_name, measured=wrong, limit=0, unit=f"of {total}"),
            Cell(name=differ_name, measured=differ, limit=0, unit=f"of {total}"),
        ]

    return Case(item=7, names=(wrong_name, differ_name), run=run)


def _next_use() -> Case:
    least = "40 clips in turn, room for 20: hits by age over hits by the plan"
    most = "the same: hits missed of those that Belady's rule has"

    def run(context: Context) -> list[Cell]:
        planned, by_age, best = context.run_here(measures.hit_shares, items=40, room=20, rounds=5)
        shares = f"hit rates {planned:.3f} by the plan, {by_age:.3f} by age, {best:.3f} at best"
        return [
            Cell(name=least, measured=by_age / planned if planned else 1.0, limit=0.5, unit=shares),
            Cell(name=most, measured=1 - planned / best, limit=0.15, unit="share"),
        ]

    return Case(item=7, names=(least, most), run=run)


def _hang() -> Case:
    names = (
        "clips whose hang cost more than one deadline, over two epochs of two processes",
        "a hanging decoder: samples lost",
        "a hanging decoder: samples with other frames than PyAV's",
    )

    def run(context: Context) -> list[Cell]:
        dear, lost, wrong, dearest = context.run_here(measures.hangs, clips=3, processes=2, epochs=2)
        units = (f"of 3; the dearest {dearest:.2f} deadlines", "of 12 reads", "of 12 reads")
        return [
            Cell(name=name, measured=measured, limit=0, unit=unit)
            for name, measured, unit in zip(names, (dear, lost, wrong), units, strict=True)
        ]

    return Case(item=7, names=names, run=run)


def _damage() -> Case:
    name = "damaged files whose frames were believed"

    def run(context: Context) -> list[Cell]:
        wrong, total = context.run_here(measures.believed_damage, files=200)
        return [Cell(name=name, measured=wrong, limit=0, unit=f"of {total}")]

    return Case(item=7, names=(name,), run=run)


def _crowd() -> Case:
    names = (
        "eight processes and SIGKILL: given a wrong byte, or whole files that do not check",
        "eight processes and SIGKILL: bytes above the bound, unfinished files included",
        "eight processes and SIGKILL: unfinished files after the next start",
    )

    def run(context: Context) -> list[Cell]:
        *found, killed = context.run_here(faults.crowd, plant=context.plant, seconds=CROWD_SECONDS)
        units = (f"with {killed} killed", "bytes", "files")
        return [
            Cell(name=name, measured=measured, limit=0, unit=unit)
            for name, measured, unit in zip(names, found, units, strict=True)
        ]

    return Case(item=7, names=names, run=run)


def _killed_reader() -> Case:
    names = ("a reader killed while its decoder hangs: processes left", "the same: files left")

    def run(context: Context) -> list[Cell]:
        found = context.run_here(faults.killed_reader)
        units = ("processes", "files, in /dev/shm as well")
        return [
            Cell(name=name, measured=measured, limit=0, unit=unit)
            for name, measured, unit in zip(names, found, units, strict=True)
        ]

    return Case(item=7, names=names, run=run)


def _full_disk() -> Case:
    names = ("a full disk under the cache: samples lost", "a full disk under the cache: samples with other pixels")

    def run(context: Context) -> list[Cell]:
        found = context.run_here(measures.full_disk, reads=3)
        return [
            Cell(name=name, measured=measured, limit=0, unit="of 3 reads")
            for name, measured in zip(names, found, strict=True)
        ]

    return Case(item=7, names=names, run=run)


def _foreign() -> Case:
    name = "files that are not the cache's, removed or changed by eviction"

    def run(context: Context) -> list[Cell]:
        lost, total = context.run_here(measures.lost_foreign)
        return [Cell(name=name, measured=lost, limit=0, unit=f"of {total}")]

    return Case(item=7, names=(name,), run=run)


def _bad_media() -> Case:
    names = (
        "bad pictures and clips: samples lost",
        "bad pictures and clips: samples repeated",
        "bad pictures and clips: bad ones without a record, good ones with one",
        "bad pictures and clips: supervised tokens and pixels of the bad ones",
        "bad pictures and clips: bad ones that nobody looked at",
        "bad pictures and clips: hopeless clips that the index took",
    )

    def run(context: Context) -> list[Cell]:
        found = context.run_here(faults.bad_media)
        units = ("samples", "samples", "samples", "values", "samples", "clips")
        return [
            Cell(name=name, measured=measured, limit=0, unit=unit)
            for name, measured, unit in zip(names, found, units, strict=True)
        ]

    fault = Injected(
        numbers=(16, 17, 18, 22),
        what="pictures and clips that are cut, empty, garbage, of zeros, without an index, with too many frames told",
        outcome="placeholders with a record; hopeless clips are left out of the index, and listed",
        lost=names[0],
        repeated=names[1],
    )
    return Case(item=6, names=names, run=run, fault=fault)
