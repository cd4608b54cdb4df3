"""The cases of the model proof: sizes, parity with transformers, FLOPs; and those of its other files."""

import statistics
from dataclasses import asdict

from model.shards import shard_report
from parallel.config import ParallelConfig
from tests.harness.flops import STEPS, counted_and_ours
from tests.harness.layouts import STAGES
from tests.harness.parity import CASES, WIDE, measure_parity
from tests.harness.precision import measure_rounding
from tests.prove.case import Case, Cell
from tests.prove.context import Context
from tests.prove.model_data import data_model_cases
from tests.prove.model_parts import parts_cases
from tests.prove.model_weights import weights_cases
from train.resolve import compose

LIMIT = 1e-5
PUBLISHED = {"2b": 2_208_985_600, "7b": 8_291_375_616, "72b": 73_405_560_320}
"""Parameters (Hugging Face model cards; notes of the configs' sums in tests/model/test_counts.py)."""
TENSOR = {"2b": (1, 2), "7b": (1, 2, 4), "72b": (1, 2, 4, 8)}
"""The tensor axes that divide the key/value heads, out of 1, 2, 4, 8."""
SEEDS = range(5)


def all_cases() -> dict[str, Case]:
    """Every case by its key."""
    cases = {f"sizes/{name}": _sizes(name) for name in PUBLISHED}
    cases["sizes/refused"] = _refused()
    cases |= weights_cases() | parts_cases()
    for tied in (True, False):
        cases[f"parity/{'tied' if tied else 'untied'}"] = _parity(tied)
    cases["parity/wide"] = _wide()
    cases |= {f"bf16/{std}": _bf16(std) for std in (0.02, 0.06)}
    cases |= data_model_cases()
    cases |= {f"flops/{stage}": _flops(stage, forward_only=False) for stage in STAGES}
    cases["flops/forward"] = _flops("stage2", forward_only=True)
    return cases


def _sizes(name: str) -> Case:
    layouts = [(tensor, pipeline) for tensor in TENSOR[name] for pipeline in (1, 2, 4, 8)]
    total = f"{name}: parameters away from the published {PUBLISHED[name]:,}"
    names = [f"{name}: held on TP{tp} x PP{pp}, beyond the total, copies and padding" for tp, pp in layouts]

    def run(context: Context) -> list[Cell]:
        config = compose(f"qwen2vl_{name}_stage2").model
        cells = []
        for label, (tensor, pipeline) in zip(names, layouts, strict=True):
            report = context.run_here(shard_report, config=config, parallel=_layout(tensor, pipeline))
            if not cells:
                off = abs(report.total - PUBLISHED[name])
                cells.append(Cell(name=total, measured=off, limit=0, unit="parameters"))
            cells.append(Cell(name=label, measured=abs(report.unaccounted), limit=0, unit="parameters"))
        return cells

    return Case(item=1, names=(total, *names), run=run)


def _layout(tensor: int, pipeline: int) -> ParallelConfig:
    return ParallelConfig(tensor=tensor, pipeline=pipeline)


def _refused() -> Case:
    name = "layouts out of TP 1, 2, 4, 8 that cut a head and were not refused with the numbers"
    wrong = [(size, tensor) for size in PUBLISHED for tensor in (1, 2, 4, 8) if tensor not in TENSOR[size]]

    def run(context: Context) -> list[Cell]:
        passed = 0
        for size, tensor in wrong:
            try:
                context.run_here(
                    shard_report, config=compose(f"qwen2vl_{size}_stage2").model, parallel=_layout(tensor, 1)
                )
                passed += 1
            except ValueError as refusal:
                passed += "num_kv_heads" not in str(refusal) or f"parallel.tensor={tensor}" not in str(refusal)
        return [Cell(name=name, measured=passed, limit=0, unit=f"of {len(wrong)}")]

    return Case(item=1, names=(name,), run=run)


def _parity(tied: bool) -> Case:
    word = "tied" if tied else "untied"
    names = {case: f"fp32, tiny, {word}: {case} (loss, logits, every gradient)" for case in CASES}

    def run(context: Context) -> list[Cell]:
        (errors,) = context.run(1, measure_parity, tied=tied)
        return [Cell(name=names[case], measured=errors[case].largest, limit=LIMIT, unit="relative") for case in names]

    return Case(item=5, names=tuple(names.values()), run=run)


def _wide() -> Case:
    case = "a packed row of all"
    name = f"fp32, width of the 2B, two layers a tower, tied: {case} (loss, logits, every gradient)"

    def run(context: Context) -> list[Cell]:
        (errors,) = context.run(1, measure_parity, timeout=600.0, tied=True, cases=[case], sizes=WIDE)
        return [Cell(name=name, measured=errors[case].largest, limit=LIMIT, unit="relative")]

    return Case(item=5, names=(name,), run=run)


def _bf16(std: float) -> Case:
    quantities = {"token_losses": "token losses", "logits": "logits", "gradient": "the whole gradient"}
    names = {
        key: f"bf16 to fp32, weights of {std}: error of {said} over transformers'" for key, said in quantities.items()
    }

    def run(context: Context) -> list[Cell]:
        pairs = [tuple(asdict(run) for run in context.run(1, measure_rounding, seed=s, std=std)[0]) for s in SEEDS]
        ratios = {key: statistics.median(ours[key] / theirs[key] for ours, theirs in pairs) for key in names}
        return [Cell(name=names[key], measured=ratios[key], limit=1.25, unit="ratio") for key in names]

    return Case(item=5, names=tuple(names.values()), run=run)


def _flops(stage: str, forward_only: bool) -> Case:
    what = "a forward pass" if forward_only else f"a step of {stage}"
    names = {step: f"FLOPs of {what}, {step}: away from torch's flop_counter" for step in STEPS}

    def run(context: Context) -> list[Cell]:
        cells = []
        for step, name in names.items():
            ((counted, ours),) = context.run(1, counted_and_ours, stage=stage, forward_only=forward_only, step=step)
            cells.append(Cell(name=name, measured=abs(ours - counted) / counted, limit=0.01, unit="relative"))
        return cells

    return Case(item=10, names=tuple(names.values()), run=run)
