"""What a run tells of itself (item 4): by parts and sources on every layout, its page, wandb and TensorBoard."""

from parallel.config import ParallelConfig
from tests.harness import told_steps, watched_runs
from tests.prove.case import Case, Cell
from tests.prove.context import LAYOUTS, Context

LIMIT = 1e-5
NORMS = tuple(
    (layout, stage, precision)
    for layout in ("DP2", "TP2", "TP2+SP", "PP2", "TP2xPP2+SP", "DP2xPP2", "DP2xTP2+SP")
    for stage, precision in (("stage2", "fp32"), ("stage1", "fp32"), ("stage2", "bf16"))
)
LOSSES = ("one process", "DP2", "TP2+SP", "PP2", "TP2xPP2+SP", "DP2xPP2", "DP2xTP2+SP")


def cases() -> dict[str, Case]:
    """Every case by its key."""
    return (
        {
            f"watch/norms/{layout}/{stage}/{precision}": _norms(layout, stage, precision)
            for layout, stage, precision in NORMS
        }
        | {f"watch/losses/{layout}": _losses(layout) for layout in LOSSES}
        | {"watch/bubble": _bubble()}
        | {"watch/page": _page(), "watch/browser": _browser(), "watch/health": _health()}
        | {f"watch/{sink}": _sink(sink) for sink in ("wandb", "tensorboard")}
    )


def _norms(layout: str, stage: str, precision: str) -> Case:
    whole = f"norms of parts, {layout}, {stage}, {precision}: against all gradients of the layout"
    alone = f"norms of parts, {layout}, {stage}, {precision}: against one process"
    names = (whole, alone) if precision == "fp32" else (whole,)

    def run(context: Context) -> list[Cell]:
        size, parallel = LAYOUTS[layout]
        ranks = context.run(size, told_steps.told_step, parallel=parallel, stage=stage, precision=precision)
        due = {whole: told_steps.part_norms_due(ranks)}
        if precision == "fp32":  # bf16 rounds elsewhere on another layout
            plain = context.worlds.run(1, told_steps.told_step, parallel=ParallelConfig(), stage=stage)
            due[alone] = plain[0].part_norms
        return [
            Cell(name=name, measured=told_steps.norm_error(ranks, due[name]), limit=LIMIT, unit="relative")
            for name in names
        ]

    return Case(item=4, names=names, run=run)


def _losses(layout: str) -> Case:
    error = f"losses of sources, {layout}: against each source alone, and their sum against the loss"
    counts = f"samples, tokens and targets of sources, {layout}: sources with others"

    def run(context: Context) -> list[Cell]:
        size, parallel = LAYOUTS[layout]
        due = context.keep("losses alone", lambda: context.worlds.run(1, told_steps.losses_alone))[0]
        ranks = context.run(size, told_steps.told_step, parallel=parallel)
        pairs = [pair for rank in ranks for pair in zip(rank.counts, told_steps.counts_due(), strict=True)]
        return [
            Cell(name=error, measured=told_steps.loss_error(ranks, due), limit=LIMIT, unit="relative"),
            Cell(name=counts, measured=sum(one != other for one, other in pairs), limit=0, unit="sources"),
        ]

    return Case(item=4, names=(error, counts), run=run)


def _bubble() -> Case:
    name = "bubble of one microbatch on PP2, where ranks take turns: distance from one half"

    def run(context: Context) -> list[Cell]:
        size, parallel = LAYOUTS["PP2"]
        ranks = context.run(size, told_steps.told_step, parallel=parallel, rows=1)
        return [Cell(name=name, measured=abs(ranks[0].bubble - 0.5), limit=0.2, unit="share")]

    return Case(item=4, names=(name,), run=run)


def _page() -> Case:
    name = "a run whose every text is hostile: what is alive on its page, or missing"

    def run(context: Context) -> list[Cell]:
        found = context.run_here(watched_runs.alive_on_page, folder=context.scratch / "page")
        return [Cell(name=name, measured=found, limit=0, unit="things")]

    return Case(item=4, names=(name,), run=run)


def _browser() -> Case:
    name = "the same page in a headless browser (apt-get install chromium): what it finds otherwise"

    def run(context: Context) -> list[Cell]:
        found = context.run_here(watched_runs.unlike_in_browser, folder=context.scratch / "browser" / "run")
        return [Cell(name=name, measured=found, limit=0, unit="things")]

    return Case(item=4, names=(name,), run=run)


def _health() -> Case:
    name = "runs with a loss that rises, norms that jump, slow or starved steps, bad samples: not called so"

    def run(context: Context) -> list[Cell]:
        missed = context.run_here(watched_runs.missed_faults, folder=context.scratch / "health")
        return [Cell(name=name, measured=len(missed), limit=0, unit="of 5")]

    return Case(item=4, names=(name,), run=run)


def _sink(sink: str) -> Case:
    name = f"{sink}, read back from its files: numbers of metrics.jsonl that are missing or others"

    def run(context: Context) -> list[Cell]:
        lost = context.run_here(watched_runs.lost_on_the_way, folder=context.scratch / sink, sink=sink)
        return [Cell(name=name, measured=lost, limit=0, unit="numbers")]

    return Case(item=4, names=(name,), run=run)
