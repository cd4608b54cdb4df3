"""The index and foreign formats (item 4)."""

from collections.abc import Callable
from pathlib import Path

from tests.harness.index_compared import unnoticed
from tests.harness.index_damage import DAMAGED, SAMPLES, Fault, hostile_pictures, sample_fault, shard_fault
from tests.harness.index_formats import PACKED, packed_faults, webdataset_faults
from tests.harness.index_rate import KINDS, core_seconds
from tests.harness.index_resumed import believed_parts, resume_after_kills
from tests.prove.case import Case, Cell, Injected
from tests.prove.context import Context

CHANGES = (
    "tokenizer",
    "template",
    "format",
    "format's version",
    "version of the index",
    "pictures decoded",
    "bytes of a shard, not its size",
    "size of a shard",
    "a flipped bit in a part",
)
AT_START = (
    "a shard shorter",
    "a shard longer",
    "a shard gone",
    "a new shard",
    "another tokenizer",
    "another template",
    "another version of the format",
    "another etag",
    "a shard written anew in the same size",
    "the end of a shard zeroed",
)
IN_FULL = (
    "a shard shorter",
    "a shard longer",
    "a shard gone",
    "a new shard",
    "another etag",
    "a shard written anew in the same size",
    "the end of a shard zeroed",
    "a flipped bit in a sample",
    "a flipped bit behind the samples",
    "another CRC in the index",
)
FORMAT_FAULTS = {
    "lost": "samples lost, neither out nor listed",
    "repeated": "samples repeated, or both out and listed",
    "changed": "samples with other text or pictures than written by hand",
    "kept": "broken records kept, files read from outside the media folder",
    "miscounted": "samples that the summary counts wrongly",
}


def cases() -> dict[str, Case]:
    """Every case by its key."""
    found = {f"index/rate/{kind}": _rate(kind) for kind in KINDS}
    found |= {"index/resumed": _resumed(), "index/parts": _parts(), "index/compared": _compared()}
    found |= {f"index/shard/{name}": _fault((14,), name, shard_fault) for name in DAMAGED}
    found |= {f"index/sample/{name}": _fault((15, 25), name, sample_fault) for name in SAMPLES}
    found |= {"index/pictures": _pictures()}
    return found | {f"index/format/{name}": _format(name) for name in (*PACKED, "webdataset")}


def _folder(context: Context, *names: str) -> Path:
    """A new one for each case and each pass over it."""
    place = context.scratch.joinpath("index", *names, str(len(list(context.scratch.rglob("*")))))
    place.mkdir(parents=True)
    return place


def _rate(kind: str) -> Case:
    name = f"{kind} and a picture of 10 KB: core-seconds for 4,000 samples"

    def run(context: Context) -> list[Cell]:
        seconds, tokens, size = context.run_here(core_seconds, folder=_folder(context, "rate"), kind=kind)
        unit = f"core-s, {4000 / seconds:,.0f} samples/s, {tokens:.0f} text tokens, {size / 1000:.1f} KB"
        return [Cell(name=name, measured=seconds, limit=1.0, unit=unit)]

    return Case(item=4, names=(name,), run=run)


def _resumed() -> Case:
    names = (
        "index killed 3 times, 2 readers: files that differ from those of one reader in one go",
        "index killed 3 times: shards read again though their part was there",
        "index killed 3 times: samples lost",
        "index killed 3 times: samples repeated",
        "index killed 3 times: samples out of order",
        "index killed 3 times: processes left after 1.5 s",
        "index killed 3 times: kills that came too late to matter",
    )

    def run(context: Context) -> list[Cell]:
        found = context.run_here(resume_after_kills, folder=_folder(context, "resumed"))
        account = found.account
        values = (found.differing_files, found.read_again, account.lost, account.repeated, account.misplaced)
        values += (found.left_over, 3 - found.kills)
        return [
            Cell(name=name, measured=value, limit=0, unit="count") for name, value in zip(names, values, strict=True)
        ]

    fault = Injected(
        numbers=(),
        what="SIGKILL of an index that is being built, 3 times",
        outcome="the index of a build at a stretch",
        lost=names[2],
        repeated=names[3],
    )
    return Case(item=4, names=names, run=run, fault=fault)


def _parts() -> Case:
    names = {change: f"interrupted, then another {change}: old parts that were taken" for change in CHANGES}

    def run(context: Context) -> list[Cell]:
        found = context.run_here(believed_parts, folder=_folder(context, "parts"))
        return [Cell(name=names[change], measured=found[change], limit=0, unit="parts") for change in CHANGES]

    return Case(item=4, names=tuple(names.values()), run=run)


def _compared() -> Case:
    names = {("start", each): f"start of a run with {each}: not named" for each in AT_START}
    names |= {("--check", each): f"--check with {each}: not named" for each in IN_FULL}

    def run(context: Context) -> list[Cell]:
        start, full = context.run_here(unnoticed, folder=_folder(context, "compared"))
        found = {"start": start, "--check": full}
        return [
            Cell(name=name, measured=found[when][each], limit=0, unit="differences")
            for (when, each), name in names.items()
        ]

    return Case(item=4, names=tuple(names.values()), run=run)


def _fault(numbers: tuple[int, ...], name: str, measure: Callable[[Path, str], Fault]) -> Case:
    title = f"case{'s' * (len(numbers) > 1)} {' and '.join(map(str, numbers))}, {name}"
    names = tuple(f"{title}: {what}" for what in ("not named", "samples lost", "samples repeated"))

    def run(context: Context) -> list[Cell]:
        found = context.run_here(measure, folder=_folder(context, "fault"), name=name)
        values = (found.unnamed, found.account.lost + found.account.misplaced, found.account.repeated)
        return [
            Cell(name=name, measured=value, limit=0, unit="count") for name, value in zip(names, values, strict=True)
        ]

    of = "a shard" if measure is shard_fault else "a sample"
    outcome = "refused or left out, and named; what is sound is indexed"
    fault = Injected(numbers=numbers, what=f"{of}: {name}", outcome=outcome, lost=names[1], repeated=names[2])
    return Case(item=4, names=names, run=run, fault=fault)


def _pictures() -> Case:
    names = (
        "a picture that crashes its decoder and two that hang it: sound ones lost",
        "a picture that crashes its decoder and two that hang it: taken for sound",
        "two pictures that hang their decoder for ever: seconds, at a deadline of 1 s",
    )

    def run(context: Context) -> list[Cell]:
        found = context.run_here(hostile_pictures)
        # A child starts anew four times; on a busy machine that takes a second or two.
        limits = (0, 0, 12.0)
        return [
            Cell(name=name, measured=value, limit=limit, unit=unit)
            for name, value, limit, unit in zip(names, found.values(), limits, ("pictures",) * 2 + ("s",), strict=True)
        ]

    return Case(item=4, names=names, run=run)


def _format(format_name: str) -> Case:
    names = {key: f"{format_name}: {text}" for key, text in FORMAT_FAULTS.items()}

    def run(context: Context) -> list[Cell]:
        place = _folder(context, "format")
        if format_name in PACKED:
            found = context.run_here(packed_faults, folder=place, name=format_name)
        else:
            found = context.run_here(webdataset_faults, folder=place)
        return [Cell(name=name, measured=found[key], limit=0, unit="count") for key, name in names.items()]

    return Case(item=4, names=tuple(names.values()), run=run)
