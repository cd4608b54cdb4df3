"""What ZeRO-1 holds, and the norm that it clips by (item 5)."""

from parallel.config import ParallelConfig
from tests.harness.held_bytes import hold_in_step
from tests.harness.layouts import STAGES
from tests.harness.norms import first_update, norm_and_clip_errors
from tests.prove.case import Case, Cell
from tests.prove.context import LAYOUTS, Context

HOLDING = {name: LAYOUTS[name] for name in ("one process", "DP2", "TP2", "PP2", "DP2xPP2", "DP2xTP2")} | {
    "DP4": (4, ParallelConfig())
}
NORMING = ("DP2", "TP2", "TP2+SP", "PP2", "DP2xTP2+SP", "TP2xPP2+SP", "DP2xPP2")


def cases() -> dict[str, Case]:
    """Every case by its key."""
    found = {
        f"state/bytes/{layout}/{precision}": _bytes(layout, precision)
        for layout in HOLDING
        for precision in ("fp32", "bf16")
    }
    found |= {f"state/norm/{layout}": _norm(layout) for layout in NORMING}
    return found | {"state/refused": _refused()}


def _bytes(layout: str, precision: str) -> Case:
    begin = f"{layout}, {precision}"
    names = {stage: f"{begin}, {stage}: bytes after backward, reduction, update, off the formula" for stage in STAGES}
    beside = f"{begin}: bytes that a reduction makes beside the gradients, beyond the formula's bucket"

    def run(context: Context) -> list[Cell]:
        size, parallel = HOLDING[layout]
        cells, beyond = [], 0
        for stage, name in names.items():
            ranks = context.run(size, hold_in_step, parallel=parallel, stage=stage, precision=precision)
            cells.append(Cell(name=name, measured=max(rank.error for rank in ranks), limit=0.02, unit="relative"))
            beyond = max(beyond, *(rank.reduction - rank.bucket for rank in ranks))
        # A rank that trains nothing makes a gradient of zero for each of its placeholders.
        return [*cells, Cell(name=beside, measured=beyond, limit=1024, unit="bytes")]

    return Case(item=5, names=(*names.values(), beside), run=run)


def _norm(layout: str) -> Case:
    names = {
        precision: (
            f"{layout}, {precision}: global norm against the whole model's gradients, each place once",
            f"{layout}, {precision}: gradients that the update saw against those, clipped by it",
        )
        for precision in ("fp32", "bf16")
    }

    def run(context: Context) -> list[Cell]:
        size, parallel = LAYOUTS[layout]
        cells = []
        for precision, both in names.items():
            errors = norm_and_clip_errors(context.run(size, first_update, parallel=parallel, precision=precision))
            cells += [
                Cell(name=name, measured=error, limit=1e-5, unit="relative")
                for name, error in zip(both, errors, strict=True)
            ]
        return cells

    return Case(item=5, names=tuple(name for both in names.values() for name in both), run=run)


def _refused() -> Case:
    reasons = {
        2: "reduce and re-shard all gradients over the data axis in each backward pass",
        3: "gather all weights over the data axis in each forward and each backward pass",
    }
    name = "ZeRO-2 or 3 under a pipeline that is not refused with its reason"

    def run(context: Context) -> list[Cell]:
        taken = context.run_here(_taken, reasons=reasons)
        return [Cell(name=name, measured=taken, limit=0, unit=f"of {len(reasons)}")]

    return Case(item=5, names=(name,), run=run)


def _taken(reasons: dict[int, str]) -> int:
    taken = 0
    for stage, reason in reasons.items():
        try:
            ParallelConfig(zero=stage, pipeline=2)
            taken += 1
        except ValueError as fault:
            taken += reason not in str(fault)
    return taken
