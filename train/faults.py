"""What the watch of a run (parallel/watch.py) has to know of training."""

from collections.abc import Sequence

from data.errors import BadSamples, ShardFault, StoreError
from data.plan.plan import Cursor, Plan, assign_rows
from parallel.place import Place
from parallel.verdict import Names
from train.errors import CheckpointError
from train.step import NonFiniteStep

MENDABLE = (ValueError, CheckpointError, BadSamples, ShardFault, StoreError, NonFiniteStep)
"""Errors whose message says all that the user needs, where every rank raises one."""


def sample_names(plan: Plan, dp_size: int, held_out: Plan | None = None) -> Names:
    """How to name the samples of a step of which a watch knows the place alone: "source:index in the source".

    Asked for when a run ends, in the thread of the watch; a step pays nothing for it.
    """

    def names(place: Place, dp_rank: int) -> Sequence[Sequence[str]]:
        window, row = place.data
        of = held_out if held_out is not None and place.phase == "evaluate" else plan
        sources = [source.name for source in of.config.sources]
        rows = of.step(Cursor(window=window, row=row)).rows
        mine = assign_rows(rows, dp_size)[dp_rank]
        return [[f"{sources[source]}:{index}" for source, index in rows[number].samples] for number in mine]

    return names
