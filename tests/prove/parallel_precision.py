"""bf16 beside fp32, and each kernel beside the plain way (item 8)."""

from dataclasses import replace

from parallel.config import KernelConfig, ParallelConfig
from tests.harness.compare import compare
from tests.harness.curves import BAND, STEPS, farthest, learning_curve
from tests.harness.kernels import kernels_in_use, norm_rounding
from tests.harness.layouts import train_on_layout
from tests.harness.precision import accumulation_error, loss_error, reduction_error, wrong_dtypes
from tests.prove.case import Case, Cell
from tests.prove.context import LAYOUTS, Context

SEEDS = (0, 1, 2)
PLAIN = KernelConfig(fused_attention=False, fused_norms=False, fused_adamw=False, overlap_tensor=False)


def cases() -> dict[str, Case]:
    """Every case by its key."""
    found = {f"precision/curve/seed {seed}": _curve(seed) for seed in SEEDS}
    found |= {f"precision/sums/{layout}": _sums(layout) for layout in ("DP2", "TP2+SP", "PP2")}
    found |= {"precision/accumulation": _accumulation(), "precision/dtypes": _dtypes()}
    return found | {f"precision/kernels/{layout}": _kernels(layout) for layout in ("TP2", "TP2+SP", "TP2xPP2+SP")}


def _curve(seed: int) -> Case:
    names = (
        f"{STEPS} steps of bf16 on DP2, seed {seed}: farthest from the smoothed fp32 curve",
        f"{STEPS} steps of fp32 on DP2, seed {seed}: last loss as a share of the first",
    )

    def run(context: Context) -> list[Cell]:
        exact, rounded = (
            context.run(2, learning_curve, seed=seed, precision=precision)[0] for precision in ("fp32", "bf16")
        )
        values = (farthest(exact, rounded), sum(exact[-10:]) / sum(exact[:10]))
        return [
            Cell(name=name, measured=value, limit=limit, unit="relative")
            for name, value, limit in zip(names, values, (BAND, 0.25), strict=True)
        ]

    return Case(item=8, names=names, run=run)


def _sums(layout: str) -> Case:
    what = {"DP2": "over the data axis", "TP2+SP": "over the tensor axis", "PP2": "of the tied embedding"}[layout]
    name = f"bf16 on {layout}: gradients summed {what}, against fp64"

    def run(context: Context) -> list[Cell]:
        size, parallel = LAYOUTS[layout]
        error = max(context.run(size, reduction_error, parallel=parallel))
        return [Cell(name=name, measured=error, limit=1e-6, unit="relative")]

    return Case(item=8, names=(name,), run=run)


def _accumulation() -> Case:
    names = (
        "bf16: gradients of 64 equal microbatches against one of 64 times the size",
        "bf16: the loss that is told against the fp64 sum of token losses",
    )

    def run(context: Context) -> list[Cell]:
        values = (context.run(1, accumulation_error, microbatches=64)[0], context.run(1, loss_error)[0])
        return [
            Cell(name=name, measured=value, limit=1e-6, unit="relative")
            for name, value in zip(names, values, strict=True)
        ]

    return Case(item=8, names=names, run=run)


def _dtypes() -> Case:
    names = {
        precision: f"{precision}: weights, and outputs of layers, of another dtype than the recipe's"
        for precision in ("fp32", "bf16")
    }
    rounding = "bf16: norms of the plain way against fp64, by norm over the output"

    def run(context: Context) -> list[Cell]:
        cells = [
            Cell(name=name, measured=len(context.run(1, wrong_dtypes, precision=precision)[0]), limit=0, unit="tensors")
            for precision, name in names.items()
        ]
        # Rounding a result to bf16 costs 1.7e-3; computing it in bf16 three times that.
        error = context.run(1, norm_rounding)[0]
        return [*cells, Cell(name=rounding, measured=error, limit=2.5e-3, unit="relative")]

    return Case(item=8, names=(*names.values(), rounding), run=run)


def _kernels(layout: str) -> Case:
    names = (
        f"{layout}, every kernel off, against one process with them: loss, norm, gradients, weights",
        f"{layout}: switches of parallel.kernels that change nothing",
    )

    def run(context: Context) -> list[Cell]:
        size, fused = LAYOUTS[layout]
        plain = replace(fused, kernels=PLAIN)
        alone = context.run(1, train_on_layout, parallel=ParallelConfig(), stage="stage2")
        difference = compare(alone, context.run(size, train_on_layout, parallel=plain, stage="stage2"))
        unread = 0
        for on, off in zip(
            *(context.run(size, kernels_in_use, parallel=parallel) for parallel in (fused, plain)), strict=True
        ):
            unread += (on.attention, off.attention) != ({True}, {False})
            unread += bool(on.norms & off.norms)
            unread += (on.adamw, off.adamw) != (True, False)
            unread += on.pending == 0 or off.pending > 0
        return [
            Cell(name=names[0], measured=difference.largest, limit=1e-5, unit="relative"),
            Cell(name=names[1], measured=unread, limit=0, unit=f"of {4 * size}"),
        ]

    return Case(item=8, names=names, run=run)
