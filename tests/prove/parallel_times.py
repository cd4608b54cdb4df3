"""Step times of two ways in one run: announced lengths over a handshake (item 3), a balanced over an even split and
interleaved over plain 1F1B (item 4), ours over transformers with torch's AdamW (item 9).

Ways take turns, and a value is the median over the pairs: both meet whatever else runs on the host.
"""

from tests.harness.peer_speed import Race, race
from tests.harness.timing import Handshake, Splits, Timing, busiest_ratio, time_chunks, time_handshake, time_splits
from tests.prove.case import Case, Cell
from tests.prove.context import Context

PAIRS = 11
SHORT_PAIRS = 31
"""Where a step takes a fifth of a second."""
STAGES = ("stage1", "stage2", "stage3")
SHARES = ((0.15, 1.00, 8), (0.35, 0.90, 16), (0.50, 0.90, 8))
"""Vision tower's share of the FLOPs, about, what a step may take of an even split's, and microbatches: where there is
little to win, filling and draining the pipeline must not hide it."""
RACES = {
    # Samples in a padded batch of theirs, rows of ours, limit.
    "equal lengths": ("equal", 4, 2, 1.0),
    "mixed lengths": ("mixed", 8, 3, 1 / 1.3),
    "mixed lengths, theirs one sample at a time": ("mixed", 1, 3, 1.0),
}


def cases() -> dict[str, Case]:
    """Every case by its key."""
    found = {
        f"times/handshake/PP{pipeline}/{stage}": _handshake(pipeline, stage) for pipeline in (2, 4) for stage in STAGES
    }
    found |= {
        f"times/split/{stage}/{share:.0%}": _split(stage, share, limit, microbatches)
        for stage in STAGES
        for share, limit, microbatches in SHARES
    }
    found |= {f"times/interleaved/{stage}": _interleaved(stage) for stage in STAGES}
    return found | {f"times/peer/{name}": _peer(name) for name in RACES}


def _handshake(pipeline: int, stage: str) -> Case:
    names = (
        f"PP{pipeline} {stage}, announced lengths",
        f"PP{pipeline} {stage}, announced lengths: numbers that differ",
    )

    def run(context: Context) -> list[Cell]:
        ranks: list[Handshake] = context.run(
            pipeline, time_handshake, pipeline=pipeline, stage=stage, pairs=SHORT_PAIRS
        )
        different = sum(rank.different for rank in ranks)
        return [
            Cell(name=names[0], measured=ranks[0].timing.ratio, limit=1.0, unit="of the handshake's step time"),
            Cell(name=names[1], measured=different, limit=0, unit="losses, norms and weights with another bit"),
        ]

    return Case(item=3, names=names, run=run)


def _split(stage: str, share: float, limit: float, microbatches: int) -> Case:
    names = tuple(f"PP2 {stage}, vision about {share:.0%}: {what}" for what in ("split=auto", "its busiest rank"))

    def run(context: Context) -> list[Cell]:
        ranks: list[Splits] = context.run(
            2, time_splits, stage=stage, vision=share, pairs=PAIRS, microbatches=microbatches
        )
        found = ranks[0]
        split = f"{list(found.even)} to {list(found.auto)}, vision {found.vision:.1%}"
        timings = [rank.timing for rank in ranks if rank.timing is not None]
        # The same split twice is the same step twice.
        values = (timings[0].ratio, busiest_ratio(timings)) if timings else (1.0, 1.0)
        units = ("of an even split's step time", "of its busiest rank's processor seconds")
        return [
            Cell(name=name, measured=value, limit=limit, unit=f"{unit}; {split}")
            for name, value, unit in zip(names, values, units, strict=True)
        ]

    return Case(item=4, names=names, run=run)


def _interleaved(stage: str) -> Case:
    names = (f"PP2 {stage}, interleaved 1F1B at 2 chunks",)

    def run(context: Context) -> list[Cell]:
        ranks: list[Timing] = context.run(2, time_chunks, stage=stage, pairs=PAIRS)
        # No limit is asked for; this one shows a regression.
        return [Cell(name=names[0], measured=ranks[0].ratio, limit=1.5, unit="of plain 1F1B's step time")]

    return Case(item=4, names=names, run=run)


def _peer(name: str) -> Case:
    names = (f"{name}: time a token", f"{name}: losses")

    def run(context: Context) -> list[Cell]:
        lengths, batch, rows, limit = RACES[name]
        found: Race = context.run(1, race, lengths=lengths, batch=batch, rows=rows, pairs=PAIRS)[0]
        unit = f"of transformers' with AdamW; {found.padding:.0%} of its places are padding"
        return [
            Cell(name=names[0], measured=found.timing.ratio, limit=limit, unit=unit),
            Cell(name=names[1], measured=found.loss, limit=1e-4, unit="largest relative difference of a step"),
        ]

    return Case(item=9, names=names, run=run)
