"""What a run tells about itself: always a JSON line a step in `metrics.jsonl`; a terminal line; wandb and TensorBoard
if asked.

Beside it lie files of lines of the same make: `starts.jsonl`, where and with what each start of the run began;
`skipped.jsonl`, steps that were left out, with the reason and the samples of every row; `saves.jsonl`, what became of
each checkpoint and of each try to upload one; `evaluations.jsonl`, held-out losses and what the model answered.
"""

import json
import logging
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from data.plan.plan import StepPlan, assign_rows, spread
from model.flops import step_flops
from parallel.pace import Straggler
from train.checkpoint.contents import Outcome
from train.checkpoint.uploads import Upload
from train.config import RunConfig
from train.console import Console
from train.lines import Lines, plain, record_of
from train.shown import Shown
from train.sinks import open_sinks, scalars
from train.state import TrainState
from train.step import StepReport

log = logging.getLogger(__name__)


class Metrics:
    """Written by one rank. Rates are over the time since the last line, so a slow start does not stay in them."""

    def __init__(
        self,
        run: RunConfig,
        peak_flops: float | None,
        from_step: int,
        from_progress: float,
        dp_size: int = 1,
        start: Mapping[str, Any] | None = None,
    ) -> None:
        """`peak_flops` is that of all devices together; `from_step` and `from_progress` are where a resumed run is;
        `start` is what train/starts.py says of this start."""
        folder = Path(run.run_dir)
        folder.mkdir(parents=True, exist_ok=True)
        self._file = _go_on(folder / "metrics.jsonl", from_step)
        self._skipped = _go_on(folder / "skipped.jsonl", from_step)
        self._saves = _go_on(folder / "saves.jsonl", from_step)
        self._evaluations = _go_on(folder / "evaluations.jsonl", from_step)
        self._stragglers = _go_on(folder / "stragglers.jsonl", from_step)
        self._starts = Lines(folder / "starts.jsonl")
        if start is not None:
            _write(self._starts, {"stage": run.stage.name, "step": from_step, **start})
        self._sources = [source.name for source in run.data.sources]
        self._stage = run.stage
        self._model = run.model
        self._peak = peak_flops
        self._dp_size = dp_size
        self._sinks = open_sinks(run, from_step, start.get("run") if start is not None else None)
        self._started = self._last = time.perf_counter()
        self._console = Console(run.log.every_steps, self._started, from_progress, run.parallel.pipeline > 1)

    def record(
        self,
        state: TrainState,
        report: StepReport,
        progress: float,
        drift: float | None = None,
    ) -> None:
        """Write the step; every `log.every_steps` steps and at the end also a line on the terminal.

        Args:
            drift: how far copies of one weight have parted on tensor ranks, where it was measured.
        """
        now = time.perf_counter()
        seconds, self._last = now - self._last, now
        row: dict[str, Any] = {
            "stage": self._stage.name,
            "step": state.step,
            "time": round(time.time(), 3),
            "loss": _finite(report.loss),
            "grad_norm": _finite(report.grad_norm),
            "part_norms": report.part_norms,
            "rates": report.rates,
            "tokens": state.tokens,
            "samples": state.samples,
            "targets": report.targets,
            "step_tokens": report.work.tokens,
            "step_patches": report.work.patches,
            "tokens_per_second": report.work.tokens / seconds,
            "step_seconds": seconds,
            # Before the first step another replica may have waited since before this rank's clock began.
            "data_seconds": min(report.data_seconds, seconds),
            "bubble": report.bubble,
            "bad_samples": state.bad,
            "skipped": report.skipped,
            "rows": report.plan.digest(),
            "sources": self._of_sources(report),
        }
        flops = step_flops(self._model, self._stage.trainable, report.work) if report.computed else 0
        row["flops_per_second"] = flops / seconds
        row |= self._spreads(report.plan)
        row |= report.reading.metrics()
        if drift is not None:
            row["replica_drift"] = drift
        if self._peak:
            row["mfu"] = flops / seconds / self._peak
        _write(self._file, row)
        if report.skipped:
            self._record_skipped(state.step, report.skipped, report.plan)
        self._sinks.log(scalars(row), state.step)
        self._console.add(row, progress, now)

    def record_save(self, outcome: Outcome) -> None:
        """Write what became of a checkpoint."""
        row = {
            "step": outcome.step,
            "checkpoint": outcome.path.name,
            "fault": outcome.fault,
            "save_bytes": outcome.nbytes,
            "save_stall_seconds": outcome.stall_seconds,
            "save_seconds": outcome.write_seconds,
            "save_bytes_per_second": outcome.nbytes / max(outcome.write_seconds, 1e-9),
        }
        _write(self._saves, row)
        self._sinks.log({key: value for key, value in scalars(row).items() if key.startswith("save_")}, outcome.step)

    def record_upload(self, upload: Upload) -> None:
        """Write what became of one try to upload a checkpoint."""
        sent = upload.sent
        row = {
            "step": upload.step,
            "checkpoint": upload.name,
            "fault": sent.fault,
            "upload_tries": upload.tries,
            "upload_files": sent.files,
            "upload_bytes": sent.nbytes,
            "upload_seconds": sent.seconds,
            "upload_bytes_per_second": sent.nbytes / max(sent.seconds, 1e-9),
        }
        _write(self._saves, row)
        self._sinks.log({key: value for key, value in scalars(row).items() if key.startswith("upload_")}, upload.step)

    def record_evaluation(
        self, step: int, losses: Mapping[str, float], shown: Sequence[Shown] = (), **more: Any
    ) -> None:
        """Write held-out losses, by source, and the table of what the model answered, with its pictures.

        Args:
            more: what else is known of it; the run's own rates leave its `seconds` out.
        """
        finite = {source: _finite(loss) for source, loss in losses.items()}
        told = {"stage": self._stage.name, "step": step, "losses": finite, **more}
        self._last += more.get("seconds", 0.0)
        _write(self._evaluations, told | {"samples": [sample.to_dict() for sample in shown]})
        self._sinks.log(scalars({"evaluation": finite}), step)
        if shown:
            self._sinks.show(shown, step)

    def record_stragglers(self, step: int, found: Sequence[Straggler]) -> None:
        """Write which ranks have held the others up, and at what; nothing for none."""
        for straggler in found:
            _write(self._stragglers, {"stage": self._stage.name, "step": step, **asdict(straggler)})
            print(f"step {step}: {straggler}", flush=True)

    def record_beside(self, told: Mapping[str, Any]) -> None:
        """Write what came of answers and command beside the run (train/beside.py), which may be a fault."""
        shown = [Shown.from_dict(sample) for sample in told.get("samples", ())]
        command = told.get("command")
        self.record_evaluation(told["step"], {}, shown, fault=told["fault"], command=command)
        if isinstance(command, Mapping):
            self._sinks.log(scalars({"command": command}), told["step"])
        if told["fault"] is not None:
            print(f"beside the run, of step {told['step']}: {told['fault']}", flush=True)

    def _of_sources(self, report: StepReport) -> dict[str, dict[str, Any]]:
        """What the step had of each source; those it had nothing of are left out."""
        named = zip(self._sources, report.sources, strict=True)
        return {name: {"loss": _finite(of.loss), **of.counts._asdict()} for name, of in named if of.counts.samples}

    def _spreads(self, plan: StepPlan) -> dict[str, float]:
        """How unevenly the step's work lies on replicas, over all and of the vision tower, and pictures on rows."""
        mine = [[plan.rows[number] for number in numbers] for numbers in assign_rows(plan.rows, self._dp_size)]
        return {
            "load_spread": spread([sum(row.cost for row in rows) for rows in mine]),
            "visual_load_spread": spread([sum(row.num_patches for row in rows) for rows in mine]),
            "microbatch_visual_spread": spread([row.num_patches for row in plan.rows]) if plan.rows else 0.0,
        }

    def _record_skipped(self, step: int, reason: str, plan: StepPlan) -> None:
        rows = [[f"{self._sources[source]}:{index}" for source, index in row.samples] for row in plan.rows]
        _write(self._skipped, {"stage": self._stage.name, "step": step, "reason": reason, "rows": rows})

    def close(self) -> None:
        for lines in (self._file, self._skipped, self._saves, self._evaluations, self._stragglers, self._starts):
            lines.close()
        self._sinks.close()


def _write(lines: Lines, row: Mapping[str, Any]) -> None:
    lines.write(json.dumps(plain(row), allow_nan=False) + "\n")


def _finite(value: float) -> float | None:
    """JSON has no nan."""
    return value if math.isfinite(value) else None


def _go_on(path: Path, step: int) -> Lines:
    """A file of JSON lines, open after those that a run resumed at `step` still stands on."""
    return Lines(path, _lines_up_to(path, step))


def _lines_up_to(path: Path, step: int) -> list[str]:
    """Lines of an earlier attempt that the resumed run still stands on: steps after its checkpoint are done again."""
    if not path.exists():
        return []
    lines = path.read_text(errors="replace").splitlines(keepends=True)
    if lines and not lines[-1].endswith("\n"):
        del lines[-1]  # a host that is lost leaves half a line
    steps = [_step_of(line) for line in lines]
    if damaged := steps.count(None):
        log.warning("%s: %d of %d lines are damaged, and are left out", path, damaged, len(lines))
    return [line for line, of in zip(lines, steps, strict=True) if of is not None and of <= step]


def _step_of(line: str) -> int | None:
    step = (record_of(line) or {}).get("step")
    return step if isinstance(step, int) else None
