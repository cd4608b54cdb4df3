"""A loss or gradient that is not finite on one rank: left out or the end, everywhere alike (item 7)."""

from tests.harness.not_finite import differing_tensors, wrong_ends, wrongly_recorded
from tests.prove.case import Case, Cell
from tests.prove.context import Context

LEFT_OUT = ("DP2", "TP2", "TP2+SP", "PP2", "DP2xTP2", "DP2xPP2", "TP2xPP2+SP")


def cases() -> dict[str, Case]:
    """Every case by its key."""
    left_out = {
        f"finite/{what}/{layout}/{precision}": _left_out(what, layout, precision)
        for what in ("loss", "gradient")
        for layout in LEFT_OUT
        for precision in ("fp32", "bf16")
    }
    return left_out | {f"finite/stop/{layout}": _stop(layout) for layout in LEFT_OUT} | {"finite/recorded": _recorded()}


def _left_out(what: str, layout: str, precision: str) -> Case:
    name = f"{what} not finite on one rank of {layout}, {precision}: weights with another bit than without the step"

    def run(context: Context) -> list[Cell]:
        differing, total = differing_tensors(context.run, what, layout, precision)
        return [Cell(name=name, measured=differing, limit=0, unit=f"of {total}")]

    return Case(item=7, names=(name,), run=run)


def _stop(layout: str) -> Case:
    name = f"two losses that are no number in a row on {layout}, one allowed: ranks that did not stop so, or too early"

    def run(context: Context) -> list[Cell]:
        return [Cell(name=name, measured=wrong_ends(context.run, layout), limit=0, unit="ranks")]

    return Case(item=7, names=(name,), run=run)


def _recorded() -> Case:
    name = "steps left out: records and following rows that are not the plan's"

    def run(context: Context) -> list[Cell]:
        ((wrong, total),) = context.run(1, wrongly_recorded, folder=context.scratch / "recorded", data=context.data)
        return [Cell(name=name, measured=wrong, limit=0, unit=f"of {total}")]

    return Case(item=7, names=(name,), run=run)
