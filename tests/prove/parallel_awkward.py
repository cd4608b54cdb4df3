"""Batches at which trainers hang or go wrong (item 2)."""

from tests.harness.awkward import AWKWARD, LAYOUTS, train_awkward, train_awkward_plainly
from tests.harness.compare import compare
from tests.harness.refused import REFUSED, said_alone
from tests.harness.skipped import KINDS, look_at_run, skip_a_step, text_recipe, train_on_text, write_text
from tests.prove.case import Case, Cell
from tests.prove.context import Context

LIMIT = 1e-5
IN_BF16 = {
    "DP2": "a replica without pictures in the whole step",
    "PP2": "a microbatch without pictures",
    "TP2+SP": "odd lengths under sequence parallelism",
    "DP2xTP2": "a row whose tokens are all masked",
    "DP2xPP2": "no picture in a whole step",
    "PP4": "fewer microbatches than pipeline stages",
    "PP2 interleaved": "pictures and clips in one row",
}
SKIPPING = ("one process", "DP2", "PP2", "TP2+SP", "DP2xPP2", "PP2 interleaved")


def cases() -> dict[str, Case]:
    """Every case by its key."""
    found = {}
    for batch, made in AWKWARD.items():
        found |= {
            f"awkward/{batch}/{layout}/{stage}": _batch(batch, layout, stage)
            for stage in made.stages
            for layout in made.layouts
        }
    found |= {f"awkward/bf16/{layout}": _bf16(batch, layout) for layout, batch in IN_BF16.items()}
    found |= {f"awkward/skipped/{kind}/{layout}": _skipped(kind, layout) for kind in KINDS for layout in SKIPPING}
    found["awkward/skipped/bf16"] = _skipped("no supervised token", "DP2", "bf16")
    found |= {f"awkward/skipped run/{layout}": _skipped_run(layout) for layout in ("DP2", "PP2")}
    return found | {f"awkward/refused/{what}": _refused(what) for what in REFUSED}


def _batch(batch: str, layout: str, stage: str) -> Case:
    name = f"{batch}: {layout}, {stage}"

    def run(context: Context) -> list[Cell]:
        size, parallel = LAYOUTS[layout]
        plain = context.once(1, train_awkward_plainly, batch=batch, stage=stage)
        records = context.run(size, train_awkward, batch=batch, parallel=parallel, stage=stage)
        return [Cell(name=name, measured=compare(plain, records).largest, limit=LIMIT, unit="relative")]

    return Case(item=2, names=(name,), run=run)


def _bf16(batch: str, layout: str) -> Case:
    names = tuple(f"bf16, {batch}: {layout}, {what}" for what in ("loss", "norm", "weights"))

    def run(context: Context) -> list[Cell]:
        size, parallel = LAYOUTS[layout]
        # A decay of 5 % a step: one that is missing must stand out from the rounding of weights.
        plain = context.once(1, train_awkward_plainly, batch=batch, stage="stage2", decay=500.0)
        records = context.run(
            size, train_awkward, batch=batch, parallel=parallel, stage="stage2", precision="bf16", decay=500.0
        )
        found = compare(plain, records)
        # bf16 has 8 bits, a few parts in a thousand each operation; what is not finite is infinitely far.
        return [
            Cell(name=name, measured=measured, limit=limit, unit="relative")
            for name, measured, limit in zip(
                names, (found.loss, found.norm, found.weight), (5e-3, 3e-2, 1e-2), strict=True
            )
        ]

    return Case(item=2, names=names, run=run)


def _skipped(kind: str, layout: str, precision: str = "fp32") -> Case:
    title = f"skipped, {kind}: {layout}" + ", bf16" * (precision == "bf16")
    names = (f"{title}, weights and state that changed", f"{title}, wrong reports")

    def run(context: Context) -> list[Cell]:
        size, parallel = LAYOUTS[layout]
        found = context.run(size, skip_a_step, parallel=parallel, kind=kind, precision=precision)
        total = sum(seen.looked_at for seen in found)
        return [
            Cell(name=names[0], measured=sum(seen.changed for seen in found), limit=0, unit=f"of {total}"),
            Cell(name=names[1], measured=sum(len(seen.wrong) for seen in found), limit=0, unit="count"),
        ]

    return Case(item=2, names=names, run=run)


def _skipped_run(layout: str) -> Case:
    title = f"stage 1 over text, {layout}"
    names = (
        f"{title}: weights and state that steps 2 to 5 changed",
        f"{title}: steps after which the data cursor stood still",
        f"{title}: steps without a record of reason and samples",
    )

    def run(context: Context) -> list[Cell]:
        folder = context.scratch / f"text {layout}"
        recipe = text_recipe(folder, write_text(folder))
        size, parallel = LAYOUTS[layout]
        context.run(size, train_on_text, parallel=parallel, folder=folder, recipe=recipe)
        found = look_at_run(folder)
        values = (found.changed, found.still, found.unrecorded)
        units = (f"of {found.tensors}", "of 4", "of 5")
        return [
            Cell(name=name, measured=value, limit=0, unit=unit)
            for name, value, unit in zip(names, values, units, strict=True)
        ]

    return Case(item=2, names=names, run=run)


def _refused(what: str) -> Case:
    name = f"refused, {what}: words missing"

    def run(context: Context) -> list[Cell]:
        processes, overrides, words = REFUSED[what]
        said = said_alone(context.scratch / "refused", processes, overrides, context.plant)
        return [Cell(name=name, measured=sum(word not in said for word in words), limit=0, unit=f"of {len(words)}")]

    return Case(item=2, names=(name,), run=run)
