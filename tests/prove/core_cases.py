"""The cases of the core proof: what each one runs, and the rows that come of it."""

import math
from collections.abc import Callable

import numpy as np

from model.hf_weights import canonical_shape, hf_pieces
from tests.harness.compare import assemble, compare, tensor_errors
from tests.harness.layouts import MODEL, STAGES, first_weight
from tests.harness.parity import CASES as PARITY
from tests.harness.parity import expected_step, measure_parity, measure_step
from tests.harness.runs import STEPS, compare_runs, launch, resume, write_recipe
from tests.harness.watch import bytes_kept_by_tower, watch_step
from tests.prove import measures
from tests.prove.case import Case, Cell
from tests.prove.context import LAYOUTS, Context
from train.batches import Counts

LIMIT = 1e-5


def all_cases() -> dict[str, Case]:
    """Every case by its key, those of small worlds first."""
    cases: dict[str, Case] = {}
    for tied in (True, False):
        cases |= _parity(tied)
    cases |= _data_cases()
    for layout, (size, _) in LAYOUTS.items():
        if layout != "one process":
            cases |= {f"layout/{stage}/{layout}": _layout(stage, layout) for stage in STAGES}
        if size == 2:
            cases[f"messages/{layout}"] = _messages(layout)
    cases |= {f"messages/{layout}": _messages(layout) for layout in ("TP2xPP2+SP", "DP2xPP2")}
    cases |= {f"frozen/{stage}": _frozen(stage) for stage in STAGES}
    cases |= {f"step/{'tied' if tied else 'untied'}": _step(tied) for tied in (True, False)}
    for layout, stage, precision in (
        ("DP2", "stage2", "fp32"),
        ("PP2", "stage1", "fp32"),
        ("TP2+SP", "stage3", "bf16"),
    ):
        cases[f"resume/{layout}"] = _resume(layout, stage, precision)
    return cases


def _parity(tied: bool) -> dict[str, Case]:
    word = "tied" if tied else "untied"
    names = {case: f"transformers, {word}: {case} (loss, logits, every gradient)" for case in PARITY}

    def run(context: Context) -> list[Cell]:
        errors = context.run(1, measure_parity, tied=tied)[0]
        return [Cell(name=names[case], measured=errors[case].largest, limit=LIMIT, unit="relative") for case in names]

    return {f"parity/{word}": Case(item=5, names=tuple(names.values()), run=run)}


def _step(tied: bool) -> Case:
    layouts = ("one process", "DP2xPP2")
    names = [f"transformers, {'tied' if tied else 'untied'}: a whole step on {layout}" for layout in layouts]

    def run(context: Context) -> list[Cell]:
        loss, expected = context.run(1, expected_step, tied=tied)[0]
        total = math.sqrt(sum(float(np.square(value, dtype=np.float64).sum()) for value in expected.values()))
        cells = []
        for name, layout in zip(names, layouts, strict=True):
            size, parallel = LAYOUTS[layout]
            records = [record for (record,) in context.run(size, measure_step, parallel=parallel, tied=tied)]
            measured = assemble([record.gradients[0] for record in records], expected)
            errors = tensor_errors(expected, measured, floor=1e-6 * total)
            worst = max(abs(records[0].losses[0] - loss) / loss, *errors.values())
            cells.append(Cell(name=name, measured=worst, limit=LIMIT, unit="relative"))
        return cells

    return Case(item=5, names=tuple(names), run=run)


def _layout(stage: str, layout: str) -> Case:
    name = f"{stage} on {layout} against one process: loss, norm, gradients, weights"

    def run(context: Context) -> list[Cell]:
        difference = compare(context.records(stage, "one process"), context.records(stage, layout))
        return [Cell(name=name, measured=difference.largest, limit=LIMIT, unit="relative")]

    return Case(item=6, names=(name,), run=run)


def _messages(layout: str) -> Case:
    names = (
        f"{layout}: messages that are not hidden states between pipeline stages",
        f"{layout}: messages between pipeline stages beyond one a microbatch and direction",
        f"{layout}: broadcasts of lengths a step, beyond one",
        f"{layout}: broadcasts of integers a step, beyond lengths and payload",
        f"{layout}: places of a row beyond its samples and sequence parallelism's multiple",
    )

    def run(context: Context) -> list[Cell]:
        size, parallel = LAYOUTS[layout]
        watched = context.run(size, watch_step, parallel=parallel, stage="stage2")
        multiple = parallel.tensor if parallel.sequence_parallel else 1
        microbatches = watched[0].microbatches
        replica_ranks = parallel.tensor * parallel.pipeline
        sent = [message for rank in watched for message in rank.messages if message.kind == "send"]
        received = [message for rank in watched for message in rank.messages if message.kind == "recv"]
        due = 2 * microbatches * (parallel.pipeline - 1) * parallel.tensor * (size // replica_ranks)
        integers = [[m for m in w.messages if m.kind == "broadcast" and m.is_integer] for w in watched]
        tables = [sum(m.numel == microbatches * len(Counts._fields) for m in found) for found in integers]
        announced = int(replica_ranks > 1)
        beyond = [
            abs(seen.row - -(-seen.samples // multiple) * multiple) + abs(seen.row - seen.hidden * multiple)
            for rank in watched
            for seen in rank.lengths
        ]
        assert all(len(rank.lengths) == microbatches for rank in watched)
        values = (
            sum(message.is_integer for message in sent + received),
            abs(len(sent) - due) + abs(len(received) - due),
            max(abs(count - announced) for count in tables),
            max(abs(len(found) - 2 * announced) for found in integers),
            max(beyond),
        )
        return [
            Cell(name=name, measured=value, limit=0, unit="count") for name, value in zip(names, values, strict=True)
        ]

    return Case(item=6, names=names, run=run)


def _frozen(stage: str) -> Case:
    layouts = ("one process", "PP2", "TP2xPP2", "DP2xPP2")
    names = (
        f"{stage}: frozen tensors with other bytes after it than before",
        f"{stage}: trained tensors that never moved",
        f"{stage}: frozen tensors that had a gradient",
        f"{stage}: optimizer elements in one process beyond the trained parts'",
        f"{stage}: optimizer elements on a pipeline stage that trains nothing",
    )
    whole = {name: canonical_shape(pieces) for name, pieces in hf_pieces(MODEL).items()}
    trained = {name for name in whole if name.split(".")[0] in STAGES[stage]}

    def run(context: Context) -> list[Cell]:
        changed = still = gradients = idle = 0
        for layout in layouts:
            records = context.records(stage, layout)
            before = {name: first_weight(name, shape).numpy() for name, shape in whole.items()}
            after = assemble([record.weights for record in records], before)
            same = {name for name in whole if after[name].tobytes() == before[name].tobytes()}
            changed += len(whole.keys() - trained - same)
            still += len(trained & same)
            gradients += sum(len(record.frozen_with_gradient) for record in records)
            if stage == "stage1" and layout == "PP2":
                idle = records[1].state_elements
        extra = context.records(stage, "one process")[0].state_elements - sum(math.prod(whole[n]) for n in trained)
        limits = (0, 0, 0, 0, 8)  # a placeholder of one element for each of the four groups, and alignment
        values = (changed, still, gradients, abs(extra), idle)
        units = ("tensors", "tensors", "tensors", "elements", "elements")
        return [
            Cell(name=name, measured=value, limit=limit, unit=unit)
            for name, value, limit, unit in zip(names, values, limits, units, strict=True)
        ]

    return Case(item=3, names=names, run=run)


def _counted(item: int, name: str, unit: str, size_of: Callable[[Context], tuple[int, int]]) -> Case:
    """One count of wrong things, which must be none out of many."""

    def run(context: Context) -> list[Cell]:
        wrong, total = size_of(context)
        assert total > 0, "nothing was looked at"
        return [Cell(name=name, measured=wrong, limit=0, unit=f"of {total} {unit}")]

    return Case(item=item, names=(name,), run=run)


def _data_cases() -> dict[str, Case]:
    tower = ("stage 3: bytes a frozen tower keeps", "stage 2: bytes a trained tower keeps less than one layer's input")

    def tower_memory(context: Context) -> list[Cell]:
        frozen, trained = (context.run(1, bytes_kept_by_tower, stage=stage)[0] for stage in ("stage3", "stage2"))
        return [
            Cell(name=tower[0], measured=frozen, limit=0, unit="bytes"),
            # The same measurement must see activations where they are kept.
            Cell(name=tower[1], measured=max(0, 60 * 64 * 4 - trained), limit=0, unit="bytes"),
        ]

    return {
        "tower memory": Case(item=3, names=tower, run=tower_memory),
        "supervision": _counted(
            3,
            "samples whose targets do not spell what is to be learnt",
            "samples",
            lambda context: context.run(1, measures.wrong_supervision, folder=context.data)[0],
        ),
        "positions": _counted(
            5,
            "tokens of a packed row with another position than in the sample alone",
            "tokens",
            lambda context: context.run(1, measures.wrong_positions)[0],
        ),
        "damaged shard": _counted(
            7,
            "samples with a flipped bit that were handed out",
            "samples",
            lambda context: context.run(1, measures.believed_samples, folder=context.data)[0],
        ),
        "damaged commit": _counted(
            7,
            "checkpoints with a flipped bit that were opened",
            "files",
            lambda context: context.run(1, measures.believed_commits)[0],
        ),
        "save cut short": _counted(
            7,
            "saves cut short after which the newest checkpoint was not whole",
            "saves",
            lambda context: context.run(1, measures.broken_saves)[0],
        ),
    }


def _resume(layout: str, stage: str, precision: str) -> Case:
    title = f"{stage} on {layout}, {precision}, stopped and resumed"
    names = tuple(f"{title}: {what}" for what in ("weights differ", "optimizer state", "rows", "loss, norm, rates"))

    def run(context: Context) -> list[Cell]:
        processes, parallel = LAYOUTS[layout]
        context.worlds.close()  # the run needs the cores
        folder = context.scratch / layout
        recipe = write_recipe(folder, context.data, stage, parallel, processes, precision)
        launch(recipe, folder / "straight", plant=context.plant)
        launch(recipe, folder / "resumed", f"stop_after_steps={STEPS - 2}", plant=context.plant)
        resume(recipe, folder / "resumed", plant=context.plant)
        found = compare_runs(folder / "straight", folder / "resumed")
        values = (
            (found.weights, f"of {found.tensors}"),
            (found.state, f"of {found.tensors}"),
            (found.rows, f"of {found.steps} steps"),
            (found.curves, f"of {found.steps} steps"),
        )
        return [
            Cell(name=name, measured=value, limit=0, unit=unit)
            for name, (value, unit) in zip(names, values, strict=True)
        ]

    return Case(item=7, names=names, run=run)
