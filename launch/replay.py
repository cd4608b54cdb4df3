"""`triptych replay RUN --step N`: one recorded step of a run once more, in one process, against what the run wrote.

It is the run's own trainer, in a folder of its own that links to the run's checkpoints: nothing of the run is changed.
The loss of step N is that of the weights after step N - 1, so it begins with the newest checkpoint of a step before N
and takes the steps in between, with their updates.
"""

import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data.plan.plan import RowPlan
from data.plan.segments import differences, segment_of
from launch.jobs.changes import changes
from launch.reports import Report, table
from model.vlm import Row
from parallel.config import ParallelConfig
from parallel.watch import Watch
from parallel.world import distributed
from train.checkpoint.commits import RECIPE, Attempt, Commit, attempts, open_commit
from train.config import EvaluateConfig, LogConfig, ProfileConfig, RunConfig
from train.lines import record_of
from train.resolve import check_saved, compose, data_config
from train.segments import saved_segments
from train.step import StepReport, train_step
from train.trainer import Trainer

TOLERANCE = {"fp32": 1e-4, "bf16": 2e-2}
"""How far loss and norm may be from the record, relative: another layout adds in another order. Ours; runs of the same
layout are equal to the last bit."""
_MOST_SHOWN = 12


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleLoss:
    """What one sample lost."""

    sample: str
    """source:index in the source."""
    microbatch: int
    """Row of the step, whatever replica had it."""
    targets: int
    loss: float
    """Mean over its supervised tokens; nan where it has none."""


def replay(
    run_dir: Path,
    step: int,
    overrides: Sequence[str] = (),
    *,
    tolerance: float | None = None,
    tell: Callable[[str], None] = lambda line: print(line, flush=True),
) -> Report:
    """Run a step again and compare. Good if it had the same samples, and loss and norm are within the tolerance.

    Args:
        overrides: where and how it runs, as `data.tokenizer=...` of a folder that was moved; nothing that is learned.
        tell: hears what is being done.

    Raises ValueError: no checkpoint leads to the step, the run never took it, or its data is not there any more.
    """
    if tolerance is not None and not 0 <= tolerance < math.inf:
        raise ValueError(f"--tolerance {tolerance:g} is a relative difference; give 0 or more")
    record, last = _record(run_dir, step)
    found = [attempt for attempt in attempts(run_dir) if attempt.sealed]
    before = [attempt for attempt in found if attempt.step < step]
    if not found:
        raise ValueError(f"{run_dir} has no finished checkpoint, and with it no recipe; nothing can be replayed")
    if step > max(last, found[0].step):
        raise ValueError(f"--step {step}: the run has come to step {max(last, found[0].step)} as far as it tells")
    with tempfile.TemporaryDirectory(prefix="triptych-replay-") as scratch:
        run = _run_of(before[0] if before else found[-1], Path(scratch), before, overrides)
        run = _with_data_of(run, step, open_commit(found[0].path), before[0].step if before else 0)
        report, samples, first = _again(run, step, tell)
    if record is None:
        tell(f"{run_dir / 'metrics.jsonl'} has no line of step {step}, so there is nothing to compare with")
    return _compared(
        run_dir, step, first, report, samples, record, TOLERANCE[run.precision] if tolerance is None else tolerance
    )


def _record(run_dir: Path, step: int) -> tuple[dict[str, Any] | None, int]:
    """(what the run wrote of the step, the last step that it wrote of)"""
    path = run_dir / "metrics.jsonl"
    if step < 1:
        raise ValueError(f"--step {step}: steps are counted from 1")
    lines = path.read_text(errors="replace").splitlines() if path.exists() else []
    told = {record["step"]: record for line in lines if (record := record_of(line)) and "step" in record}
    return told.get(step), max(told, default=0)


def _run_of(attempt: Attempt, scratch: Path, before: Sequence[Attempt], overrides: Sequence[str]) -> RunConfig:
    """The recipe of a checkpoint for one process that writes nothing but in `scratch`, where checkpoints are linked."""
    check_saved(open_commit(attempt.path).recipe)
    saved = compose(Path(RECIPE).stem, folder=attempt.path)
    given = compose(Path(RECIPE).stem, list(overrides), folder=attempt.path)
    other = [str(change) for change in changes(saved, given) if not change.is_free]
    if other:
        raise ValueError(f"a step that is replayed learns what it learned; leave out {'; '.join(other)}")
    (scratch / "checkpoints").mkdir()
    for each in before:
        (scratch / "checkpoints" / each.path.name).symlink_to(each.path.resolve())
    return replace(
        given,
        run_dir=str(scratch),
        resume=bool(before),
        stop_after_steps=None,
        parallel=ParallelConfig(
            kernels=given.parallel.kernels,
            recompute=given.parallel.recompute,
            reduce_bucket_elements=given.parallel.reduce_bucket_elements,
            timeout_seconds=given.parallel.timeout_seconds,
        ),
        data=replace(given.data, workers=0, prefetch_steps=1),
        checkpoint=replace(given.checkpoint, upload=None),
        log=LogConfig(),
        evaluate=EvaluateConfig(),
        profile=ProfileConfig(),
    )


def _with_data_of(run: RunConfig, step: int, newest: Commit, reached: int) -> RunConfig:
    """The same with the data that fed the steps after `reached`, where the run has changed it there.

    Raises ValueError if it has changed in between: no checkpoint of that moment is left to begin with.
    """
    if "segments" not in newest.state:
        return run
    segments = saved_segments(newest.state, run.data)
    first, last = segment_of(segments, reached + 1), segment_of(segments, step)
    if first is not last:
        raise ValueError(
            f"the data of the run changed with step {last.first_step}, and the newest checkpoint before step {step} is "
            f"of step {reached}; checkpoint.keep_every_steps would have kept one"
        )
    if reached == 0 or first.first_step <= reached:
        return run
    before = segment_of(segments, reached)
    changed = [key for key in differences(before.plan, first.plan) if key != "used"]
    theirs = data_config(first.data)
    return replace(run, data=replace(theirs, workers=0, prefetch_steps=1), new_segment=tuple(changed))


def _again(run: RunConfig, step: int, tell: Callable[[str], None]) -> tuple[StepReport, list[SampleLoss], int]:
    """(what the step did, what its samples lost, the step after which it began)"""
    with _one_thread(), distributed(run.parallel, run.seed) as groups:
        trainer = Trainer(run, groups, Watch(run.parallel, run.run_dir, ()))  # not entered: it watches nothing
        try:
            first = trainer.state.step
            if step - first > 1:
                tell(f"the newest checkpoint before step {step} is of step {first}: {step - 1 - first} come first")
            while trainer.state.step < step - 1:
                train_step(trainer.parts, trainer.state)
            sums: list[tuple[Tensor, Tensor]] = []
            parts = replace(trainer.parts, listen=lambda row, losses: sums.append(by_sample(row, losses)))
            report = train_step(parts, trainer.state)
        finally:
            trainer.batches.close()
            trainer.bad.close()
            trainer.optimizer.close()
    sources = [source.name for source in run.data.sources]
    return report, list(_samples(report.plan.rows, sums, sources)), first


@contextmanager
def _one_thread() -> Iterator[None]:
    """As launch/torchrun.sh gives each process of a run: more of them add in another order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def by_sample(row: Row, token_losses: Tensor) -> tuple[Tensor, Tensor]:
    """Sums of losses and supervised tokens of each segment of a row, fp64 and int64 (segments,), on the host."""
    learnt = (row.targets >= 0).view(-1).cpu()
    losses, places = token_losses.detach().view(-1).double().cpu()[learnt], row.supervised.cpu()[learnt]
    segment = torch.searchsorted(torch.tensor(row.segments.lengths).cumsum(0), places, right=True)
    count = len(row.segments.lengths)
    sums = torch.zeros(count, dtype=torch.float64).index_add_(0, segment, losses)
    return sums, torch.bincount(segment, minlength=count)


def _samples(
    rows: Sequence[RowPlan], sums: Sequence[tuple[Tensor, Tensor]], sources: Sequence[str]
) -> Iterator[SampleLoss]:
    for number, (row, (losses, targets)) in enumerate(zip(rows, sums, strict=False)):
        # Padding is a segment more than the row has samples.
        for (source, index), total, count in zip(row.samples, losses.tolist(), targets.tolist(), strict=False):
            mean = total / count if count else math.nan
            yield SampleLoss(sample=f"{sources[source]}:{index}", microbatch=number, targets=count, loss=mean)


def _compared(
    run_dir: Path,
    step: int,
    first: int,
    report: StepReport,
    samples: Sequence[SampleLoss],
    record: dict[str, Any] | None,
    tolerance: float,
) -> Report:
    rows: list[list[str]] = [["", "recorded", "replayed", "difference"]]
    wrong: list[str] = []
    for name, was, now in _pairs(report, record or {}):
        apart = _apart(was, now)
        rows.append([name, _cell(was), _cell(now), "" if was is None and now is None else f"{apart:.1e}"])
        if record is not None and apart > (tolerance if isinstance(now, float) else 0.0):
            wrong.append(name)
    same = record is None or record["rows"] == report.plan.digest()
    lines = [f"step {step} of {run_dir}, in one process from the weights after step {first}", *table(rows)]
    if not same:
        lines.append("the samples are not those that the run recorded: sources, tokenizer or recipe are others")
    if wrong:
        lines.append(f"further than {tolerance:g} from the record: {', '.join(wrong)}")
    if report.skipped:
        lines.append(f"the step is left out: {report.skipped}")
    worst = sorted(samples, key=_worst_first)
    data = {
        "step": step,
        "from_step": first,
        "recorded": record,
        "replayed": {name: now for name, _, now in _pairs(report, {})},
        "same_samples": same,
        "skipped": report.skipped,
        "samples": [
            {"sample": s.sample, "microbatch": s.microbatch, "targets": s.targets, "loss": _finite(s.loss)}
            for s in samples
        ],
    }
    return Report(lines=[*lines, *_shown(worst)], data=data, good=same and not wrong)


def _pairs(report: StepReport, record: dict[str, Any]) -> Iterator[tuple[str, float | None, float | None]]:
    """(name, recorded, replayed), None for what is not finite or not there."""
    yield "loss", record.get("loss"), _finite(report.loss)
    yield "grad_norm", record.get("grad_norm"), _finite(report.grad_norm)
    for part, rate in report.rates.items():
        yield f"rate of {part}", record.get("rates", {}).get(part), rate
    yield "targets", record.get("targets"), report.targets
    yield "tokens", record.get("step_tokens"), report.work.tokens
    for number, (name, told) in enumerate(record.get("sources", {}).items()):
        of = [each for each in report.sources if each.counts.samples]
        if number < len(of):
            yield f"loss of {name}", told.get("loss"), _finite(of[number].loss)


def _shown(samples: Sequence[SampleLoss]) -> list[str]:
    if not samples:
        return []
    chosen = samples[:_MOST_SHOWN]
    head = f"samples by loss, {len(chosen)} of {len(samples)}, the largest first (--json has all):"
    cells = [[s.sample, f"row {s.microbatch}", f"{s.targets} targets", f"loss {s.loss:.4f}"] for s in chosen]
    return [head, *(f"  {line}" for line in table(cells))]


def _worst_first(sample: SampleLoss) -> tuple[int, float]:
    """What is not finite, then by loss, then what has nothing to learn."""
    if sample.targets == 0:
        return 2, 0.0
    return (1, -sample.loss) if math.isfinite(sample.loss) else (0, 0.0)


def _apart(was: float | None, now: float | None) -> float:
    if was is None or now is None:
        return 0.0 if was is now else math.inf
    return abs(was - now) / max(abs(was), 1e-12) if was != now else 0.0


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.8g}"
